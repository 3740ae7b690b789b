//! The pages of adapters, from the outside.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use loralei_adapter::{Comparison, Inspection, ModuleMeasures, SubspaceSimilarity};
use loralei_report::{
    ComposedMember, ComposedMethod, CompositionPage, PairOverlap, PictureGrid, PictureRow, write_composition_page,
    write_inspection_page,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

const HOSTILE: [&str; 6] = [
    "</script><img src=x onerror=alert(1)>",
    "\"><svg onload=alert(1)>",
    "' onmouseover='alert(1)",
    "</title></style></noscript><script>alert(1)</script>",
    "<!--",
    "\u{2028}\u{202e}\u{0}<b>",
];

fn inspection_with(text: &str) -> Inspection {
    let module = |name: &str, spectral: f64| ModuleMeasures {
        module: name.to_owned(),
        kind: text.to_owned(),
        weight_shape: vec![6, 4],
        rank: Some(2),
        alpha: Some(1.0),
        frobenius: 1.25 * spectral,
        spectral,
        stable_rank: 1.5625,
        effective_rank: 1.8,
        singular_values: vec![spectral, 0.75 * spectral],
        base: None,
    };
    let phi = SubspaceSimilarity {
        module: "lora_unet_mid_block_attentions_0_proj_in".to_owned(),
        input: vec![vec![0.2, 0.4, 1.0], vec![0.0, 0.6, 0.8]],
        output: vec![vec![0.1, 0.3, 0.5], vec![0.7, 0.9, 0.2]],
        random_input: 0.75,
        random_output: 0.5,
        cosine: -0.25,
    };
    let texts = |text: &str| [(text.to_owned(), text.to_owned())].into();
    Inspection {
        file: text.to_owned(),
        num_bytes: 12_345,
        format: text.to_owned(),
        family: text.to_owned(),
        dtypes: vec![text.to_owned()],
        num_parameters: 40,
        ranks: [(2, 2)].into(),
        alphas: [(text.to_owned(), 2)].into(),
        kinds: [(text.to_owned(), 2)].into(),
        targets: [(text.to_owned(), 2)].into(),
        trigger_words: vec![text.to_owned()],
        embeddings: [(text.to_owned(), vec![2, 3])].into(),
        hashes: texts(text),
        hashes_match: Some(true),
        metadata: texts(text),
        modules: vec![module("lora_unet_mid_block_attentions_0_proj_in", 2.0), module(text, 0.5)],
        against: Some(Comparison {
            file: text.to_owned(),
            modules: vec![phi],
            only_here: vec![text.to_owned()],
            only_there: vec![text.to_owned()],
        }),
    }
}

fn composition_with(text: &str) -> CompositionPage {
    let some = || Some(text.to_owned());
    CompositionPage {
        title: text.to_owned(),
        base: some(),
        members: vec![ComposedMember {
            name: text.to_owned(),
            scale: 0.5,
            rank: some(),
            prompt: some(),
            ..ComposedMember::default()
        }],
        methods: vec![ComposedMethod {
            name: text.to_owned(),
            rho_max: Some(1.75),
            worst_layer: some(),
            is_within_rule: Some(false),
            layer_rho: vec![Some(1.75), None],
            ..ComposedMethod::default()
        }],
        layers: vec!["lora_unet_mid_block_attentions_0_proj_in".to_owned(), text.to_owned()],
        pairs: vec![PairOverlap { first: text.to_owned(), second: text.to_owned(), ..PairOverlap::default() }],
        rule: some(),
        notes: vec![text.to_owned()],
        pictures: Some(PictureGrid {
            prompts: vec![text.to_owned(), text.to_owned()],
            rows: vec![PictureRow { name: text.to_owned(), pictures: vec![Some(b"\x89PNG".to_vec()), None] }],
        }),
        ..CompositionPage::default()
    }
}

fn inspection_page(inspection: &Inspection) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("inspection.html");
    write_inspection_page(inspection, &path).unwrap();
    fs::read_to_string(path).unwrap()
}

fn composition_page(composition: &CompositionPage) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("composition.html");
    write_composition_page(composition, &path).unwrap();
    fs::read_to_string(path).unwrap()
}

/// Names of all tags in their order, with the names of their attributes.
fn structure(page: &str) -> Vec<String> {
    let of_tag = |tag: &str| {
        // Values stand between double quotes and hold none.
        let outside: Vec<&str> = tag.split('"').step_by(2).collect();
        outside.concat().split('>').next().unwrap().to_owned()
    };
    page.split('<').skip(1).map(of_tag).collect()
}

fn page_data(page: &str, id: &str) -> Value {
    let json = page.split(&format!("id=\"{id}\">")).nth(1).unwrap().split("</script>").next().unwrap();
    serde_json::from_str(json).unwrap()
}

#[test]
fn text_of_a_file_is_never_markup() {
    let pages = |text: &str| [inspection_page(&inspection_with(text)), composition_page(&composition_with(text))];
    let plain = pages("plain").map(|page| structure(&page));
    for hostile in HOSTILE {
        assert_eq!(pages(hostile).map(|page| structure(&page)), plain, "{hostile}");
    }
    let data = page_data(&pages(HOSTILE[0])[0], "adapter-data");
    assert_eq!(data["modules"][1]["module"], HOSTILE[0], "a name is drawn as it is");
}

#[test]
fn nothing_runs_but_what_the_policy_names_and_nothing_is_fetched() {
    for page in [inspection_page(&inspection_with("plain")), composition_page(&composition_with("plain"))] {
        let policy = page.split("Content-Security-Policy\" content=\"").nth(1).unwrap().split('"').next().unwrap();
        let policy = policy.replace("&#39;", "'");
        assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe") && !policy.contains("http"));
        for name in ["script", "style"] {
            let contents: Vec<&str> = page.split(&format!("<{name}>")).skip(1).collect();
            assert!(contents.len() >= 2, "{name}");
            for content in contents {
                let hash = STANDARD.encode(Sha256::digest(content.split(&format!("</{name}>")).next().unwrap()));
                assert!(policy.contains(&format!("'sha256-{hash}'")), "{name}");
            }
        }
        let is_own = |source: &str| source.starts_with("data:image/png;base64,");
        assert!(page.split("src=\"").skip(1).all(is_own));
    }
}

#[test]
fn the_page_draws_the_figures_that_it_was_given() {
    let mut inspection = inspection_with("plain");
    inspection.modules[1].stable_rank = f64::NAN;
    let page = inspection_page(&inspection);
    let data = page_data(&page, "adapter-data");
    assert_eq!(
        data["modules"][0]["measures"],
        json!({"spectral": 2.0, "frobenius": 2.5, "stable_rank": 1.5625, "effective_rank": 1.8, "cosine": -0.25,
            "phi_input": 0.8, "phi_output": 0.2})
        .as_object()
        .map(|measures| {
            // Four digits.
            let mut measures = measures.clone();
            measures.insert("stable_rank".to_owned(), json!(1.562));
            Value::Object(measures)
        })
        .unwrap()
    );
    assert_eq!(data["modules"][0]["singular_values"], json!([2.0, 1.5]));
    assert!(data["modules"][1]["measures"].get("stable_rank").is_none(), "what is no number is left out");

    let layer = &data["subspaces"]["layers"]["0"];
    assert_eq!((&layer["i"], &layer["j"]), (&json!([1, 2]), &json!([1, 2, 3])));
    let input = STANDARD.decode(layer["input"].as_str().unwrap()).unwrap();
    assert_eq!(input, [51, 102, 255, 0, 153, 204]);
    assert_eq!(data["subspaces"]["mean"]["output"], json!([0.1, 0.3, 0.5, 0.7, 0.9, 0.2]));
    assert_eq!(data["subspaces"]["mean"]["random_input"], json!([0.25, 0.5, 0.75, 0.5, 0.5, 0.75]));

    let row = page.split("<tbody>").nth(1).unwrap().split("</tr>").next().unwrap();
    for value in [">6 × 4<", ">2.5<", ">1.56<", ">-0.25<"] {
        assert!(row.contains(value), "{value} {row}");
    }
}

#[test]
fn the_composition_shows_its_verdict_and_only_the_columns_that_were_measured() {
    let mut composition = composition_with("plain");
    let page = composition_page(&composition);
    assert!(page.contains("✗ broken") && !page.contains("✓ kept"));
    assert!(page.contains("ρ largest</th>") && !page.contains("Additivity error"));
    let data = page_data(&page, "composition-data");
    assert_eq!(data["parts"][0]["values"], json!([1.75]));
    assert_eq!(data["parts"][1]["values"], json!([null]));

    composition.methods[0].is_within_rule = Some(true);
    composition.methods[0].additivity_error = Some(0.125);
    let page = composition_page(&composition);
    assert!(page.contains("✓ kept") && page.contains(">0.125<"));
}

#[test]
fn an_adapter_without_layers_has_a_page() {
    let inspection = Inspection { modules: Vec::new(), against: None, ..inspection_with("plain") };
    let page = inspection_page(&inspection);
    assert!(!page.contains("<section id=\"layers\"") && page.contains("<section id=\"file\""));
    assert_eq!(page, inspection_page(&inspection), "the same data, the same bytes");
}
