//! Several adapters as one: each method against NumPy, and what it promises.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test prepares its inputs plainly")]

use std::collections::BTreeMap;

use loralei_adapter::compose::{ComposeSettings, LayerGram, Member, Method, MethodMeasures, Yardstick, compose};
use loralei_adapter::{Adapter, AdapterError, Array, LoraModule};

const LINEAR: &str = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
const CONV: &str = "lora_unet_down_blocks_0_resnets_0_conv1";
const SCALES: [f32; 3] = [0.8, -0.5, 1.5];

/// As `numbers` of tests/golden/adapters/make_compose.py.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| (((i * 7919 + seed) % 1009) as f64 / 504.5 - 1.0) as f32).collect()
}

fn linear(index: usize, (out, width): (usize, usize), rank: usize, alpha: Option<f32>) -> LoraModule {
    LoraModule {
        down: Array { shape: vec![rank, width], data: numbers(rank * width, 17 + 53 * index) },
        up: Array { shape: vec![out, rank], data: numbers(out * rank, 401 + 97 * index) },
        alpha,
    }
}

fn conv(index: usize, rank: usize, alpha: f32) -> LoraModule {
    let mut module = linear(index, (5, 27), rank, Some(alpha));
    module.down.shape = vec![rank, 3, 3, 3];
    module.up.shape.extend([1, 1]);
    module
}

fn adapter(modules: &[(&str, LoraModule)]) -> Adapter {
    let modules = modules.iter().map(|(name, module)| ((*name).to_owned(), module.clone())).collect();
    Adapter { modules, ..Adapter::default() }
}

/// The members of the script: different ranks, alphas and scales, one negative, and one lacks the convolution.
fn three() -> [Adapter; 3] {
    [
        adapter(&[(LINEAR, linear(0, (9, 7), 2, Some(3.0))), (CONV, conv(0, 2, 1.0))]),
        adapter(&[(LINEAR, linear(1, (9, 7), 3, None))]),
        adapter(&[(LINEAR, linear(2, (9, 7), 1, Some(2.0))), (CONV, conv(2, 2, 4.0))]),
    ]
}

fn members(adapters: &[Adapter; 3]) -> [Member<'_>; 3] {
    std::array::from_fn(|i| Member { adapter: &adapters[i], scale: SCALES[i] })
}

fn golden() -> serde_json::Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/adapters/compose.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn floats(value: &serde_json::Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn composed(members: &[Member<'_>], settings: &ComposeSettings) -> Adapter {
    compose(members, settings, &BTreeMap::new()).unwrap().adapter
}

fn with(method: Method) -> ComposeSettings {
    ComposeSettings::new(method)
}

/// ||found - expected|| / ||expected||.
fn distance(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
    (difference / expected.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

fn in_f64(array: &Array) -> Vec<f64> {
    array.data.iter().map(|value| f64::from(*value)).collect()
}

#[test]
fn every_method_makes_the_change_that_numpy_makes() {
    let (adapters, golden) = (three(), golden());
    let members = members(&adapters);
    let trimmed = |method| ComposeSettings { density: 0.4, rank: Some(9), ..with(method) };
    let cases = [
        ("sum", with(Method::Sum)),
        ("svd rank 2", ComposeSettings { rank: Some(2), ..with(Method::Svd) }),
        ("svd rank 2", ComposeSettings { rank: Some(2), ..with(Method::Sum) }),
        ("ties", trimmed(Method::Ties)),
        ("ties rank 2", ComposeSettings { rank: Some(2), ..trimmed(Method::Ties) }),
        ("knots", trimmed(Method::Knots)),
        ("knots rank 2", ComposeSettings { rank: Some(2), ..trimmed(Method::Knots) }),
        ("budget 1", with(Method::Budget)),
        ("budget 0.5", ComposeSettings { budget: 0.5, ..with(Method::Budget) }),
    ];
    for (name, settings) in cases {
        let composed = composed(&members, &settings);
        for (layer, module) in [("linear", LINEAR), ("conv", CONV)] {
            let module = &composed.modules[module];
            module.check(layer).unwrap();
            let error = distance(&module.delta().data, &floats(&golden[layer][name]));
            assert!(error < 1e-5, "{name} of {layer}: {error:e}");
        }
    }
}

#[test]
fn the_scripts_methods_differ_from_each_other() {
    let golden = golden();
    let narrow = |key: &str| floats(&golden["linear"][key]).into_iter().map(|value| value as f32).collect::<Vec<_>>();
    let names = ["sum", "svd rank 2", "ties", "ties rank 2", "knots", "knots rank 2", "budget 1", "budget 0.5"];
    for (at, first) in names.iter().enumerate() {
        for second in &names[at + 1..] {
            let distance = distance(&narrow(first), &floats(&golden["linear"][*second]));
            assert!(distance > 0.01, "{first} and {second} cannot be told apart: {distance}");
        }
    }
}

#[test]
fn measures_are_those_of_numpy() {
    let (adapters, golden) = (three(), golden());
    let members = members(&adapters);
    let yardstick = Yardstick::of(&members).unwrap();
    let sum = yardstick.measure("sum", &composed(&members, &with(Method::Sum))).unwrap();
    let (mut result, mut parts) = (0.0, 0.0);
    for (layer, name) in [("linear", LINEAR), ("conv", CONV)] {
        let golden = |key: &str| floats(&golden[layer][key]);
        let found = sum.layers.iter().find(|figures| figures.module == name).unwrap();
        let rho = golden("sigma of sum")[0] / golden("sigma of members").into_iter().fold(0.0, f64::max);
        let (norm, squares) = (golden("sum").iter().map(|v| v * v).sum::<f64>(), golden("squares").iter().sum::<f64>());
        assert!((found.rho - rho).abs() < 1e-6, "{} {rho}", found.rho);
        assert!((found.norm_ratio - (norm / squares).sqrt()).abs() < 1e-6);
        assert!(found.difference.unwrap() < 1e-6);
        (result, parts) = (result + norm, parts + squares);
    }
    assert!((sum.norm_ratio - (result / parts).sqrt()).abs() < 1e-6);

    let budget = yardstick.measure("budget", &composed(&members, &with(Method::Budget))).unwrap();
    let figures = budget.layers.iter().find(|figures| figures.module == LINEAR).unwrap();
    let (sum, within) = (floats(&golden["linear"]["sum"]), floats(&golden["linear"]["budget 1"]));
    let narrow: Vec<f32> = within.iter().map(|value| *value as f32).collect();
    assert!((figures.difference.unwrap() - distance(&narrow, &sum)).abs() < 1e-5);

    let overlaps = yardstick.overlaps();
    assert_eq!(overlaps.iter().map(|pair| pair.members).collect::<Vec<_>>(), [[0, 1], [0, 2], [1, 2]]);
    for pair in overlaps {
        let expected = floats(&golden["pairs"][format!("{} {}", pair.members[0], pair.members[1])]);
        let layer = pair.layers.iter().find(|layer| layer.module == LINEAR).unwrap();
        for (found, expected) in [layer.input, layer.output, layer.cosine].into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{:?}: {found} {expected}", pair.members);
        }
        let (smaller, larger) = ([2, 3, 1][pair.members[0]], [2, 3, 1][pair.members[1]]);
        assert!((layer.random_input - f64::from(smaller.max(larger)) / 7.0).abs() < 1e-12);
    }
}

fn measured(members: &[Member<'_>], settings: &ComposeSettings) -> MethodMeasures {
    Yardstick::of(members).unwrap().measure("m", &composed(members, settings)).unwrap()
}

#[test]
fn equal_members_add_up_in_the_sum_and_stay_one_within_the_budget() {
    let [first, ..] = three();
    let members = [Member { adapter: &first, scale: 0.7 }; 4];
    let sum = measured(&members, &with(Method::Sum));
    assert!((sum.rho_max - 4.0).abs() < 1e-5 && (sum.rho_mean - 4.0).abs() < 1e-5);
    assert!((sum.norm_ratio - 2.0).abs() < 1e-5);
    let budget = measured(&members, &with(Method::Budget));
    assert!((budget.rho_max - 1.0).abs() < 1e-5);
    let whole = ComposeSettings { density: 1.0, rank: Some(9), ..with(Method::Ties) };
    for settings in [with(Method::Budget), whole, ComposeSettings { method: Method::Knots, ..whole }] {
        for (name, module) in &composed(&members, &settings).modules {
            let mut expected = in_f64(&first.modules[name].delta());
            expected.iter_mut().for_each(|value| *value *= f64::from(0.7_f32));
            assert!(distance(&module.delta().data, &expected) < 1e-5, "{:?}", settings.method);
        }
    }
    let [pair] = Yardstick::of(&members[..2]).unwrap().overlaps().try_into().unwrap();
    for figure in [pair.input, pair.output, pair.cosine] {
        assert!((figure.unwrap() - 1.0).abs() < 1e-6);
    }
}

#[test]
fn opposite_members_cancel_in_every_method_that_adds() {
    let [first, ..] = three();
    let members = [Member { adapter: &first, scale: 0.7 }, Member { adapter: &first, scale: -0.7 }];
    for method in [Method::Sum, Method::Svd, Method::Budget] {
        let figures = measured(&members, &with(method));
        assert!(figures.rho_max < 1e-6 && figures.norm_ratio < 1e-6, "{method:?}: {figures:?}");
        assert_eq!(figures.difference, None);
    }
    let [pair] = Yardstick::of(&members).unwrap().overlaps().try_into().unwrap();
    assert!((pair.cosine.unwrap() + 1.0).abs() < 1e-6);
}

#[test]
fn members_without_a_common_direction_are_within_any_budget_of_one_and_left_alone() {
    // Rows and columns 0 to 2 of the one, 3 to 5 of the other.
    let block = |from: usize, seed: usize| {
        let (mut down, mut up) = (vec![0.0; 2 * 6], vec![0.0; 8 * 2]);
        for (at, value) in numbers(6, seed).into_iter().enumerate() {
            down[at / 3 * 6 + from + at % 3] = value;
            up[(from + at / 2) * 2 + at % 2] = value * 2.0 - 0.3;
        }
        let (down, up) = (Array { shape: vec![2, 6], data: down }, Array { shape: vec![8, 2], data: up });
        adapter(&[(LINEAR, LoraModule { down, up, alpha: Some(3.0) })])
    };
    let (first, second) = (block(0, 11), block(3, 470));
    let members = [Member { adapter: &first, scale: 1.0 }, Member { adapter: &second, scale: -1.3 }];
    let budget = composed(&members, &with(Method::Budget));
    assert_eq!(budget, composed(&members, &with(Method::Sum)));
    let figures = measured(&members, &with(Method::Budget));
    assert!((figures.rho_max - 1.0).abs() < 1e-6 && (figures.norm_ratio - 1.0).abs() < 1e-6);
    let [pair] = Yardstick::of(&members).unwrap().overlaps().try_into().unwrap();
    assert!([pair.input, pair.output, pair.cosine].iter().all(|figure| figure.unwrap().abs() < 1e-9));
}

#[test]
fn the_budget_holds_for_any_members_and_takes_no_more_than_it_must() {
    for seed in 0..20 {
        let of = |index: usize, rank| adapter(&[(LINEAR, linear(seed * 7 + index, (24, 40), rank, Some(2.0)))]);
        let adapters = [of(0, 4), of(1, 9), of(2, 2)];
        let members = [
            Member { adapter: &adapters[0], scale: 1.0 },
            Member { adapter: &adapters[0], scale: 0.4 + seed as f32 / 20.0 },
            Member { adapter: &adapters[1], scale: -0.6 },
            Member { adapter: &adapters[2], scale: 1.5 },
        ];
        let sum = measured(&members, &with(Method::Sum));
        for budget in [0.3, 1.0, 1.1] {
            let within = measured(&members, &ComposeSettings { budget, ..with(Method::Budget) });
            assert!(within.rho_max <= budget * (1.0 + 1e-5), "{seed}: {}", within.rho_max);
            let scaled_by = (budget / sum.rho_max).min(1.0);
            assert!((within.difference.unwrap() - (1.0 - scaled_by)).abs() < 1e-5);
            assert_eq!(within.rank, sum.rank);
        }
    }
}

#[test]
fn dare_keeps_the_share_it_was_told_and_divides_by_it() {
    let one = adapter(&[(LINEAR, linear(0, (60, 50), 2, Some(3.0)))]);
    let other = adapter(&[(LINEAR, linear(1, (60, 50), 3, None))]);
    let members = [Member { adapter: &one, scale: 1.0 }, Member { adapter: &other, scale: -0.5 }];
    let settings = ComposeSettings { density: 0.25, rank: Some(50), ..with(Method::Dare) };
    let dared = composed(&members, &settings);
    let (first, second) = (one.modules[LINEAR].delta().data, other.modules[LINEAR].delta().data);
    let mut counts = [0; 4];
    for (value, (a, b)) in dared.modules[LINEAR].delta().data.iter().zip(first.iter().zip(&second)) {
        let (a, b) = (a / 0.25, b * -0.5 / 0.25);
        let nearest = [0.0, a, b, a + b].map(|expected| (value - expected).abs());
        let which = (0..4).min_by(|x, y| nearest[*x].total_cmp(&nearest[*y])).unwrap();
        assert!(nearest[which] < 1e-4, "{value} is none of 0, {a}, {b} and their sum");
        counts[which] += 1;
    }
    // Binomial with n = 3000: three standard deviations are at most 71.
    for (count, probability) in counts.iter().zip([9.0 / 16.0, 3.0 / 16.0, 3.0 / 16.0, 1.0 / 16.0]) {
        assert!((f64::from(*count) - 3000.0 * probability).abs() < 90.0, "{counts:?}");
    }
    let all = composed(&members, &ComposeSettings { density: 1.0, ..settings });
    assert!(
        distance(
            &all.modules[LINEAR].delta().data,
            &in_f64(&composed(&members, &with(Method::Sum)).modules[LINEAR].delta())
        ) < 1e-5
    );
}

#[test]
fn chance_is_a_function_of_seed_module_and_member() {
    let of = |name: &str| adapter(&[(name, linear(0, (60, 50), 2, None))]);
    let (here, there) = (of(LINEAR), of("lora_unet_other"));
    let dare = |adapter: &Adapter, seed| {
        let settings = ComposeSettings { seed, rank: Some(50), ..with(Method::Dare) };
        composed(&[Member { adapter, scale: 1.0 }], &settings).modules.pop_first().unwrap().1.delta()
    };
    assert_eq!(dare(&here, 1), dare(&here, 1));
    let dropped = |delta: &Array| delta.data.iter().map(|value| value.abs() < 1e-6).collect::<Vec<_>>();
    assert_ne!(dropped(&dare(&here, 1)), dropped(&dare(&here, 2)));
    assert_ne!(dropped(&dare(&here, 1)), dropped(&dare(&there, 1)));
    let members = [Member { adapter: &here, scale: 1.0 }; 2];
    let both = composed(&members, &ComposeSettings { seed: 1, rank: Some(50), ..with(Method::Dare) });
    let one = dare(&here, 1);
    let is_double =
        both.modules[LINEAR].delta().data.iter().zip(&one.data).all(|(two, one)| (two - 2.0 * one).abs() < 1e-4);
    assert!(!is_double, "two members drop the same entries");
}

/// Inputs (width, samples) of the members by the script's rule, and what they leave behind.
fn recorded(adapters: &[Adapter; 3]) -> LayerGram {
    let inputs: Vec<Vec<f64>> = [1.0, 0.3, 2.0]
        .iter()
        .enumerate()
        .map(|(member, factor)| {
            numbers(7 * 11, 5 + 31 * member).into_iter().map(|value| f64::from(value) * factor).collect()
        })
        .collect();
    gram_of(&adapters.each_ref().map(|adapter| adapter.modules.get(LINEAR)), &inputs, 7)
}

fn gram_of(modules: &[Option<&LoraModule>], inputs: &[Vec<f64>], width: usize) -> LayerGram {
    let (mut gram, mut projected) = (vec![0.0; width * width], Vec::new());
    for (module, x) in modules.iter().zip(inputs) {
        let samples = x.len() / width;
        let own = |i: usize, j: usize| (0..samples).map(|s| x[i * samples + s] * x[j * samples + s]).sum::<f64>();
        (0..width * width).for_each(|at| gram[at] += own(at / width, at % width) as f32);
        let rank = module.map_or(0, LoraModule::rank);
        let down = |r: usize, i: usize| f64::from(module.unwrap().down.data[r * width + i]);
        let entry = |at: usize| (0..width).map(|i| down(at / width, i) * own(i, at % width)).sum::<f64>() as f32;
        projected.push(Array { shape: vec![rank, width], data: (0..rank * width).map(entry).collect() });
    }
    LayerGram { gram, projected }
}

#[test]
fn fusion_is_numpys_solution_and_says_what_it_could_only_add() {
    let (adapters, golden) = (three(), golden());
    let members = members(&adapters);
    let grams: BTreeMap<String, LayerGram> = [(LINEAR.to_owned(), recorded(&adapters))].into();
    for (name, ridge) in [("fusion ridge 1e-4", 1e-4), ("fusion ridge 0.1", 0.1)] {
        let fused = compose(&members, &ComposeSettings { ridge, ..with(Method::Fusion) }, &grams).unwrap();
        let error = distance(&fused.adapter.modules[LINEAR].delta().data, &floats(&golden["linear"][name]));
        assert!(error < 1e-4, "{name}: {error:e}");
        assert_eq!(fused.summed_plainly, [CONV]);
        let error = distance(&fused.adapter.modules[CONV].delta().data, &floats(&golden["conv"]["sum"]));
        assert!(error < 1e-5);
    }
    let mut wrong = grams;
    wrong.get_mut(LINEAR).unwrap().projected.pop();
    let error = compose(&members, &with(Method::Fusion), &wrong).unwrap_err();
    assert!(matches!(&error, AdapterError::LayerGramShape { module } if module == LINEAR), "{error}");
}

/// W X, (out, samples).
fn outputs(weight: &Array, x: &[f64], width: usize) -> Vec<f64> {
    let samples = x.len() / width;
    let dot = |row: &[f32], s: usize| row.iter().enumerate().map(|(i, w)| f64::from(*w) * x[i * samples + s]).sum();
    weight.data.chunks(width).flat_map(|row| (0..samples).map(|s| dot(row, s)).collect::<Vec<f64>>()).collect()
}

#[test]
fn each_member_does_as_before_where_inputs_do_not_meet_and_best_where_they_do() {
    let of = |index| adapter(&[(LINEAR, linear(index, (9, 8), 2, Some(3.0)))]);
    let adapters = [of(0), of(1)];
    let modules = adapters.each_ref().map(|adapter| adapter.modules.get(LINEAR));
    let members = adapters.each_ref().map(|adapter| Member { adapter, scale: 1.0 });
    let deltas = modules.map(|module| module.unwrap().delta());
    let error_of = |fused: &Array, inputs: &[Vec<f64>]| -> f64 {
        let off = |(delta, x): (&Array, &Vec<f64>)| {
            let pairs = outputs(fused, x, 8).into_iter().zip(outputs(delta, x, 8));
            pairs.map(|(found, wanted)| (found - wanted).powi(2)).sum::<f64>()
        };
        let wanted: f64 = deltas.iter().zip(inputs).flat_map(|(delta, x)| outputs(delta, x, 8)).map(|v| v * v).sum();
        (deltas.iter().zip(inputs).map(off).sum::<f64>() / wanted).sqrt()
    };
    for meet in [false, true] {
        // Without meeting, the first has inputs in coordinates 0 to 3 and the second in 4 to 7.
        let inputs: Vec<Vec<f64>> = (0..2)
            .map(|member| {
                let value =
                    |at: usize, value: f32| if meet || (at / 12 < 4) == (member == 0) { f64::from(value) } else { 0.0 };
                numbers(8 * 12, 3 + 71 * member).into_iter().enumerate().map(|(at, v)| value(at, v)).collect()
            })
            .collect();
        let grams: BTreeMap<_, _> = [(LINEAR.to_owned(), gram_of(&modules, &inputs, 8))].into();
        let settings = ComposeSettings { ridge: 1e-6, ..with(Method::Fusion) };
        let fused = compose(&members, &settings, &grams).unwrap().adapter.modules[LINEAR].delta();
        let sum = composed(&members, &with(Method::Sum)).modules[LINEAR].delta();
        let (fused, sum) = (error_of(&fused, &inputs), error_of(&sum, &inputs));
        if meet {
            assert!(fused < 0.9 * sum, "{fused} {sum}");
        } else {
            assert!(fused < 1e-4 && sum > 0.1, "{fused} {sum}");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let adapters = three();
    let all = |num_threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        pool.install(|| Method::ALL.map(|method| composed(&members(&adapters), &with(method))))
    };
    assert_eq!(all(1), all(3));
}

#[test]
fn settings_out_of_range_are_refused_by_name() {
    let adapters = three();
    let usual = with(Method::Budget);
    let wrong = [
        ("rank", ComposeSettings { rank: Some(0), ..usual }),
        ("budget", ComposeSettings { budget: 0.0, ..usual }),
        ("budget", ComposeSettings { budget: f64::NAN, ..usual }),
        ("density", ComposeSettings { density: 1.5, ..usual }),
        ("density", ComposeSettings { density: 0.0, ..usual }),
        ("ridge", ComposeSettings { ridge: -1.0, ..usual }),
    ];
    for (name, settings) in wrong {
        let error = compose(&members(&adapters), &settings, &BTreeMap::new()).unwrap_err();
        assert!(matches!(&error, AdapterError::ComposeSetting { setting, .. } if *setting == name), "{error}");
    }
    let endless = [Member { adapter: &adapters[0], scale: f32::NAN }];
    assert!(matches!(compose(&endless, &usual, &BTreeMap::new()), Err(AdapterError::BadScale { .. })));
    assert!(compose(&[], &usual, &BTreeMap::new()).unwrap().adapter.modules.is_empty());
}

#[test]
fn members_that_have_not_moved_give_no_change_and_no_figures() {
    let mut still = three()[0].clone();
    still.modules.values_mut().for_each(|module| module.up.data.fill(0.0));
    let members = [Member { adapter: &still, scale: 1.0 }; 2];
    for method in Method::ALL {
        let figures = measured(&members, &with(method));
        assert!(figures.layers.is_empty() && figures.rho_max == 0.0 && figures.difference.is_none(), "{method:?}");
        let composed = composed(&members, &with(method));
        assert!(composed.modules.values().all(|module| !module.has_moved() && module.check("m").is_ok()), "{method:?}");
    }
    assert_eq!(Yardstick::of(&members).unwrap().overlaps()[0].cosine, None);
}

/// SD 1.5's 192 modules of the U-Net and 72 of the text encoder as (name, out, in).
fn sd15_layers() -> Vec<(String, usize, usize)> {
    let mut layers = Vec::new();
    let blocks = [("down_blocks_0", 2, 320), ("down_blocks_1", 2, 640), ("down_blocks_2", 2, 1280)];
    let others = [("mid_block", 1, 1280), ("up_blocks_1", 3, 1280), ("up_blocks_2", 3, 640), ("up_blocks_3", 3, 320)];
    for (block, count, c) in blocks.into_iter().chain(others) {
        for at in 0..count {
            let name = |layer: &str| format!("lora_unet_{block}_attentions_{at}_{layer}");
            layers.extend(["proj_in", "proj_out"].map(|layer| (name(layer), c, c)));
            for (attention, width) in [("attn1", c), ("attn2", 768)] {
                let name = |layer: &str| name(&format!("transformer_blocks_0_{attention}_{layer}"));
                layers.extend(["to_q", "to_out_0"].map(|layer| (name(layer), c, c)));
                layers.extend(["to_k", "to_v"].map(|layer| (name(layer), c, width)));
            }
            layers.push((name("transformer_blocks_0_ff_net_0_proj"), 8 * c, c));
            layers.push((name("transformer_blocks_0_ff_net_2"), c, 4 * c));
        }
    }
    for at in 0..12 {
        let name = |layer: &str| format!("lora_te_text_model_encoder_layers_{at}_{layer}");
        layers.extend(["q", "k", "v", "out"].map(|which| (name(&format!("self_attn_{which}_proj")), 768, 768)));
        layers.extend([(name("mlp_fc1"), 3072, 768), (name("mlp_fc2"), 768, 3072)]);
    }
    layers
}

#[test]
#[ignore = "takes a minute or two and 3 GB: prints how long each method takes on five adapters of SD 1.5 at rank 32"]
fn how_long_five_adapters_take() {
    let layers = sd15_layers();
    assert_eq!(layers.len(), 264);
    let one = |index: usize| {
        let modules = layers.iter().enumerate().map(|(at, (name, out, width))| {
            (name.clone(), linear(at * 31 + index * 7, (*out, *width), 32, Some(16.0)))
        });
        Adapter { modules: modules.collect(), ..Adapter::default() }
    };
    let adapters: [Adapter; 5] = std::array::from_fn(one);
    let members = adapters.each_ref().map(|adapter| Member { adapter, scale: 0.7 });
    let start = std::time::Instant::now();
    let yardstick = Yardstick::of(&members).unwrap();
    println!("yardstick {:.1} s", start.elapsed().as_secs_f64());
    for method in Method::ALL {
        let start = std::time::Instant::now();
        let composed = composed(&members, &with(method));
        let composed_s = start.elapsed().as_secs_f64();
        let start = std::time::Instant::now();
        let figures = yardstick.measure(method.name(), &composed).unwrap();
        let (rho, measured_s) = (figures.rho_max, start.elapsed().as_secs_f64());
        println!(
            "{} {composed_s:.1} s, rank {}, rho {rho:.2}, measured in {measured_s:.1} s",
            method.name(),
            figures.rank
        );
    }
}
