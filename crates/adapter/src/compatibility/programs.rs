//! The rules of each program.

use super::facts::{
    Facts, has_component_prefix, has_peft_prefix, is_alpha, is_attention, is_dotted, is_kohya_key, is_of,
    is_outside_of_blocks, is_row_dora, is_text, leaf,
};
use super::{Answer, ProgramReport};
use crate::base_family::BaseFamily;
use crate::change::Change;
use crate::formats::dotted_reader::METADATA_KEY;
use crate::keys::Component;
use crate::source_key::{KeySpelling, SourceKey};

const FOREIGN_NAMES: &str = "names that it does not know";
const NO_ADAPTER: &str = "no part of an adapter";
const DORA: &str = "dora_scale is dropped, and the rest applied as plain LoRA: another picture";

pub(super) fn all(facts: &Facts) -> Vec<ProgramReport> {
    vec![
        a1111(facts),
        comfy_ui(facts),
        diffusers(facts),
        stable_diffusion_cpp(facts),
        invoke_ai(facts),
        sd_scripts(facts),
        additional_networks(facts),
    ]
}

fn is_embedding(key: &SourceKey) -> bool {
    key.spelling == KeySpelling::Embedding
}

fn is_unknown(key: &SourceKey) -> bool {
    key.spelling == KeySpelling::Unknown
}

fn is_position(key: &SourceKey) -> bool {
    key.spelling == KeySpelling::Position
}

fn is_dora_leaf(key: &SourceKey) -> bool {
    leaf(key) == "dora_scale"
}

fn has(facts: &Facts, is_wanted: impl Fn(&SourceKey) -> bool) -> bool {
    facts.keys.iter().any(is_wanted)
}

/// Text attentions of OpenCLIP that lack some of q, k, v, out: programs with a fused layer cannot apply a part.
fn has_partial_fused_attention(facts: &Facts) -> bool {
    let fused = match facts.family {
        BaseFamily::Sd2 => Component::TextEncoder,
        _ => Component::TextEncoder2,
    };
    !facts.incomplete_text_attentions(fused).is_empty()
}

fn a1111(facts: &Facts) -> ProgramReport {
    let mut answer = Answer::new(facts, "A1111");
    answer.ignore(FOREIGN_NAMES, |key| is_dotted(key) || is_position(key) || (is_embedding(key) && !facts.is_kohya()));
    answer.ignore(NO_ADAPTER, is_unknown);
    if has_partial_fused_attention(facts) {
        let partial = if facts.family == BaseFamily::Sd2 { Component::TextEncoder } else { Component::TextEncoder2 };
        let attentions = facts.incomplete_text_attentions(partial);
        answer.ignore("q, k and v of a text attention without all of q, k, v, out", |key| {
            let module = key.module.as_deref().unwrap_or_default();
            attentions.keys().any(|attention| module.starts_with(attention)) && !module.ends_with("_out_proj")
        });
    }
    let num_row_dora = facts.count(|_, change| is_row_dora(change));
    answer.wrong_scale(
        num_row_dora,
        "DoRA with a length for each row: normalised by columns (1.9 on), or ignored (up to 1.8)",
    );
    let num_column_dora = facts.count(|_, change| matches!(change, Change::Dora(_))) - num_row_dora;
    answer.wrong_scale(num_column_dora, "DoRA is ignored up to version 1.8");
    answer.note_if(
        facts.is_hidden_from_lists(),
        "its metadata does not name the base: hidden in the list, prompts by file name work",
    );
    answer.finish()
}

fn comfy_ui(facts: &Facts) -> ProgramReport {
    let mut answer = Answer::new(facts, "ComfyUI, Forge");
    answer.ignore(FOREIGN_NAMES, |key| is_position(key) || has_peft_prefix(key));
    answer.ignore(NO_ADAPTER, is_unknown);
    answer.ignore("learned tokens beside an adapter", is_embedding);
    answer.ignore("attention by the names that diffusers has now; only `processor.to_q_lora` is known", |key| {
        let is_new = matches!(key.spelling, KeySpelling::LoraDown | KeySpelling::Peft);
        is_new && key.module.as_deref().is_some_and(is_attention)
    });
    answer.ignore("text encoder without its level `text_model.`", |key| {
        is_dotted(key) && is_text(key) && !key.key.contains(".text_model.")
    });
    let num_row_dora = facts.count(|_, change| is_row_dora(change));
    answer.wrong_scale(num_row_dora, "DoRA with a length for each row: normalised by the unchanged weight");
    answer.finish()
}

fn diffusers(facts: &Facts) -> ProgramReport {
    let mut answer = Answer::new(facts, "diffusers");
    answer.refuse_if(has(facts, is_position), "keys by position cannot be mapped");
    answer.refuse_if(has(facts, |key| is_embedding(key) || is_unknown(key)), "tensors that are no part of the adapter");
    if facts.is_kohya() {
        diffusers_kohya(facts, &mut answer);
    } else {
        answer.ignore("PEFT's own names: nothing is applied, with a warning only", has_peft_prefix);
        answer
            .ignore("no `unet.` or `text_encoder.` before the name: a warning only", |key| !has_component_prefix(key));
        answer.refuse_if(has(facts, |key| is_dotted(key) && is_alpha(key)), "an alpha tensor beside PEFT's names");
        answer
            .refuse_if(facts.settings_lack_a_component(), format!("{METADATA_KEY} lacks a component that has tensors"));
        let num_uneven = facts.num_uneven_ranks();
        let has_settings = facts.metadata.contains_key(METADATA_KEY);
        answer.note_if(
            num_uneven > 0 && !has_settings,
            format!(
                "0.35.2 scales {num_uneven} modules wrongly whose rank is not the most frequent one; 0.42.1 does not"
            ),
        );
        let lacks_level = has(facts, |key| is_dotted(key) && is_text(key) && !key.key.contains("text_model."));
        answer.note_if(lacks_level, "0.35.2 fails at text encoder names without `text_model.`; 0.42.1 does not");
    }
    answer.finish()
}

fn diffusers_kohya(facts: &Facts, answer: &mut Answer) {
    answer.refuse_if(
        facts.metadata.contains_key(METADATA_KEY),
        format!("{METADATA_KEY} in the header of a file with kohya keys"),
    );
    let num_other = facts.count(|_, change| !matches!(change, Change::Lora(_) | Change::Dora(_)));
    answer.refuse_if(num_other > 0, "LoHa, LoKr, Tucker form or whole differences: its keys are not renamed");
    answer.ignore(DORA, is_dora_leaf);
    answer.wrong_scale(facts.count(|_, change| matches!(change, Change::Dora(_))), "DoRA without its lengths");
    answer.refuse_if(
        facts.has_wrong_projections(BaseFamily::Sd1, 2),
        "proj_in and proj_out have 2 dimensions; those of SD 1.x have 4",
    );
    answer.refuse_if(
        facts.has_wrong_projections(BaseFamily::Sd2, 4),
        "proj_in and proj_out have 4 dimensions; those of SD 2.x have 2",
    );
    for component in [Component::TextEncoder, Component::TextEncoder1, Component::TextEncoder2] {
        let attentions = facts.incomplete_text_attentions(component);
        let lacks_only_out = |ends: &std::collections::BTreeSet<&str>| ends.len() == 3 && !ends.contains("out_proj");
        answer
            .refuse_if(attentions.values().any(|ends| !lacks_only_out(ends)), "a text attention lacks some of q, k, v");
        answer.ignore("q, k and v of a text attention without out_proj", |key| {
            let module = key.module.as_deref().unwrap_or_default();
            attentions.keys().any(|attention| module.starts_with(&format!("{attention}_")))
        });
    }
    let has_both_names = facts.has_spelling(KeySpelling::KohyaOriginal)
        && has(facts, |key| key.spelling == KeySpelling::Kohya && is_of(key, Component::Unet));
    if has_both_names {
        answer
            .ignore("original block names beside those of diffusers", |key| key.spelling == KeySpelling::KohyaOriginal);
    }
    answer.wrong_scale(
        facts.num_uneven_attention_alphas(),
        "attention layers get the alpha that most modules have, whatever their own",
    );
    let num_uneven = facts.num_uneven_ranks();
    answer.note_if(
        num_uneven > 0,
        format!(
            "{num_uneven} modules have another rank than most: 0.35.2 scales some of them wrongly even without alphas"
        ),
    );
}

fn stable_diffusion_cpp(facts: &Facts) -> ProgramReport {
    let mut answer = Answer::new(facts, "stable-diffusion.cpp");
    answer.ignore(FOREIGN_NAMES, |key| is_position(key) || has_peft_prefix(key));
    answer.ignore(NO_ADAPTER, |key| is_unknown(key) || is_embedding(key));
    answer.ignore("text encoder by diffusers' names: mangled and lost", |key| is_dotted(key) && is_text(key));
    answer.ignore(DORA, is_dora_leaf);
    answer.wrong_scale(facts.count(|_, change| matches!(change, Change::Dora(_))), "DoRA without its lengths");
    let is_rank_one =
        |_: &str, change: &Change| matches!(change, Change::Lora(lora) if lora.rank() == 1 && lora.alpha.is_some());
    answer.wrong_scale(
        if facts.is_kohya() { facts.count(is_rank_one) } else { 0 },
        "rank 1 with an alpha: divided by the number of inputs, so that the change all but vanishes",
    );
    let is_lokr_one = |_: &str, change: &Change| matches!(change, Change::Kronecker(_)) && change.rank() == Some(1);
    answer.wrong_scale(facts.count(is_lokr_one), "LoKr of rank 1: the scale is taken for 1");
    answer.finish()
}

fn invoke_ai(facts: &Facts) -> ProgramReport {
    let mut answer = Answer::new(facts, "InvokeAI");
    answer.refuse_if(has(facts, is_dotted), "diffusers' and PEFT's names");
    answer.refuse_if(has(facts, is_position), "keys by position");
    answer.refuse_if(
        facts.is_kohya() && !facts.has_telling_width(),
        "no cross-attention (attn2_to_k, attn2_to_v) or text attention of a known width to tell the base by",
    );
    let has_both_names = facts.has_spelling(KeySpelling::KohyaOriginal)
        && has(facts, |key| key.spelling == KeySpelling::Kohya && is_of(key, Component::Unet));
    answer.refuse_if(has_both_names, "original block names beside those of diffusers");
    answer.ignore(NO_ADAPTER, |key| is_unknown(key) || is_embedding(key));
    if matches!(facts.family, BaseFamily::Sd1 | BaseFamily::Sd2) {
        answer.ignore("lora_te1_ or lora_te2_ for a base with one text encoder", |key| {
            is_of(key, Component::TextEncoder1) || is_of(key, Component::TextEncoder2)
        });
    }
    answer.wrong_scale(
        facts.count(|_, change| is_row_dora(change)),
        "DoRA with a length for each row: normalised by columns",
    );
    answer.finish()
}

fn sd_scripts(facts: &Facts) -> ProgramReport {
    let mut answer = Answer::new(facts, "sd-scripts");
    answer.ignore(FOREIGN_NAMES, |key| is_dotted(key) || is_position(key));
    answer.ignore(NO_ADAPTER, |key| is_unknown(key) || is_embedding(key));
    if matches!(facts.family, BaseFamily::Sd1 | BaseFamily::Sd2) {
        answer.ignore("lora_te1_ or lora_te2_ for a base with one text encoder", |key| {
            is_of(key, Component::TextEncoder1) || is_of(key, Component::TextEncoder2)
        });
    }
    answer.ignore("layers that it does not train", |key| key.module.as_deref().is_some_and(is_outside_of_blocks));
    answer.ignore("other kinds of change than plain LoRA (they need LyCORIS)", |key| {
        let is_lora_leaf = matches!(leaf(key), "lora_down.weight" | "lora_up.weight" | "alpha");
        is_kohya_key(key) && (!is_lora_leaf || !matches!(facts.change(key), Some(Change::Lora(_) | Change::Dora(_))))
    });
    answer.wrong_scale(facts.count(|_, change| matches!(change, Change::Dora(_))), "DoRA without its lengths");
    answer.refuse_if(
        facts.is_kohya() && facts.has_wrong_projections(BaseFamily::Sd1, 2),
        "proj_in and proj_out have 2 dimensions; those of SD 1.x have 4",
    );
    answer.finish()
}

fn additional_networks(facts: &Facts) -> ProgramReport {
    let mut answer = Answer::new(facts, "additional-networks");
    answer.refuse_if(has(facts, is_dotted), "diffusers' and PEFT's names");
    answer.refuse_if(has(facts, is_position), "keys by position");
    answer.refuse_if(has(facts, |key| is_embedding(key) || is_unknown(key)), "tensors that are no part of the adapter");
    answer.refuse_if(
        facts.has_component(Component::TextEncoder1) || facts.has_component(Component::TextEncoder2),
        "lora_te1_ or lora_te2_: it knows one text encoder",
    );
    answer.refuse_if(
        facts.has_spelling(KeySpelling::KohyaOriginal) || facts.family == BaseFamily::Sdxl,
        "an adapter of SDXL",
    );
    answer.refuse_if(
        has(facts, |key| is_alpha(key) && is_kohya_key(key) && !key.shape.is_empty()),
        "alphas with a dimension",
    );
    answer.refuse_if(
        facts.count(|module, change| is_outside_of_blocks(module) || matches!(change, Change::Full(_))) > 0,
        "layers or kinds of change that sd-scripts does not train",
    );
    answer.ignore("LoHa, LoKr or Tucker form: left out without a word", |key| {
        matches!(facts.change(key), Some(Change::Hadamard(_) | Change::Kronecker(_) | Change::Tucker(_)))
    });
    answer.ignore(DORA, is_dora_leaf);
    answer.wrong_scale(facts.count(|_, change| matches!(change, Change::Dora(_))), "DoRA without its lengths");
    answer.finish()
}
