//! The leak score: what it measures, against predictions made one by one.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a test may panic

use candle_core::{DType, Device, Tensor};
use loralei_adapter::Adapter;
use loralei_model::{Base, BaseSource, Checkpointing, EncodedText};
use loralei_trainer::{Draw, LeakProbes, LeakPrompt, LeakScore, MicroBatch, Network, Purpose, Text};
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn base(name: &str) -> Base {
    Base::open(BaseSource::Folder(golden(name).join("base")), None, DType::F32, &Device::Cpu).unwrap()
}

fn adapter(name: &str) -> Adapter {
    Adapter::read(&golden(name).join("adapter.safetensors")).unwrap()
}

/// The adapter with B = 0: it changes nothing.
fn zeroed(adapter: &Adapter) -> Adapter {
    let mut adapter = adapter.clone();
    adapter.modules.values_mut().for_each(|module| module.up.data.fill(0.0));
    adapter
}

fn network(base: &Base, adapter: &Adapter) -> Network {
    Network::with_adapter(base, adapter, Checkpointing::None).unwrap()
}

fn text(base: &Base, prompt: &str) -> Text {
    let ids = base.tokenizer(0).unwrap().encode(prompt).unwrap().input_ids;
    Text::tokens(vec![Tensor::from_vec(ids, (1, 77), &Device::Cpu).unwrap()])
}

const PROMPTS: [(&str, bool); 4] = [("a dog", false), ("sks dog", true), ("", false), ("sks", true)];

fn prompts(base: &Base) -> Vec<LeakPrompt> {
    let prompt = |(prompt, has_trigger): &(&str, bool)| LeakPrompt {
        prompt: (*prompt).to_owned(),
        has_trigger: *has_trigger,
        text: text(base, prompt),
    };
    PROMPTS.iter().map(prompt).collect()
}

fn probes(base: &Base, num_points: usize, seed: u64) -> LeakProbes {
    LeakProbes::without_pictures((12, 8), num_points, &base.noise_schedule(), seed).unwrap()
}

fn measure(network: &Network, probes: &LeakProbes, prompts: &[LeakPrompt]) -> LeakScore {
    LeakScore::measure(network, probes, prompts, &mut |_| ()).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The prediction at one place, by the door that training uses.
fn prediction(network: &Network, probes: &LeakProbes, place: usize, text: &Text) -> Vec<f32> {
    let at = |all: &Tensor| all.narrow(0, place, 1).unwrap();
    let batch = MicroBatch::new(at(&probes.latents), at(&probes.noise), vec![probes.timesteps[place]]);
    numbers(&network.run(&batch, text, 1.0).unwrap().prediction)
}

#[test]
fn a_change_is_the_mean_relative_squared_distance_of_single_predictions() {
    for name in ["sd1", "sd2"] {
        let (base, adapter) = (base(name), adapter(name));
        let (adapted, plain) = (network(&base, &adapter), network(&base, &zeroed(&adapter)));
        // More places than go through the network at once, so that a wrong cut would show.
        let probes = probes(&base, 45, 3);
        let score = measure(&adapted, &probes, &prompts(&base));
        let mut sums = [0.0, 0.0];
        for (of, (prompt, has_trigger)) in score.per_prompt.iter().zip(PROMPTS) {
            let text = text(&base, prompt);
            let at = |place: usize| {
                let (e, changed) =
                    (prediction(&plain, &probes, place, &text), prediction(&adapted, &probes, place, &text));
                let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>();
                let distance = squares(&mut e.iter().zip(&changed).map(|(a, b)| f64::from(*a) - f64::from(*b)));
                distance / squares(&mut e.iter().map(|x| f64::from(*x)))
            };
            let expected = (0..45).map(at).sum::<f64>() / 45.0;
            assert!(expected > 1e-4, "{name} {prompt:?}: {expected}");
            assert!((of.change / expected - 1.0).abs() < 1e-4, "{name} {prompt:?}: {} {expected}", of.change);
            assert_eq!((of.prompt.as_str(), of.has_trigger), (prompt, has_trigger));
            sums[usize::from(has_trigger)] += expected / 2.0;
        }
        assert!((score.without_trigger / sums[0] - 1.0).abs() < 1e-4, "{name}: {score:?} {sums:?}");
        assert!((score.with_trigger / sums[1] - 1.0).abs() < 1e-4, "{name}: {score:?} {sums:?}");
        assert!((score.leak().unwrap() / (sums[0] / sums[1]) - 1.0).abs() < 1e-3);
        assert!((sums[0] / sums[1] - 1.0).abs() > 1e-3, "the two means must be told apart: {sums:?}");
    }
}

#[test]
fn factors_that_add_nothing_change_nothing() {
    let (base, adapter) = (base("sd1"), adapter("sd1"));
    let (prompts, probes) = (prompts(&base), probes(&base, 3, 1));
    let (new, off) = (network(&base, &zeroed(&adapter)), network(&base, &adapter));
    off.factors().set_strength(0.0);
    for network in [new, off] {
        let score = measure(&network, &probes, &prompts);
        assert!(score.with_trigger == 0.0 && score.without_trigger == 0.0, "{score:?}");
        assert_eq!(score.leak(), None);
    }
}

#[test]
fn the_change_of_a_small_adapter_grows_with_the_square_of_its_strength() {
    let (base, adapter) = (base("sd1"), adapter("sd1"));
    let network = network(&base, &adapter);
    let (prompts, probes) = (prompts(&base), probes(&base, 4, 1));
    let at = |strength: f32| {
        network.factors().set_strength(strength);
        measure(&network, &probes, &prompts)
    };
    let (one, two) = (at(0.02), at(0.04));
    for (small, large) in [(one.with_trigger, two.with_trigger), (one.without_trigger, two.without_trigger)] {
        assert!((large / small - 4.0).abs() < 0.4, "{small} {large}");
    }
}

#[test]
fn only_text_factors_leave_the_prompt_that_is_given_encoded_as_it_is() {
    let (base, mut adapter) = (base("sd1"), adapter("sd1"));
    adapter.modules.retain(|module, _| module.starts_with("lora_te"));
    assert!(!adapter.modules.is_empty());
    let network = network(&base, &adapter);
    let probes = probes(&base, 2, 1);
    let encoded = Draw::new(4, 0, 0, Purpose::Noise).standard_normal(77 * base.text_widths()[0]);
    let encoded = Tensor::from_vec(encoded, (1, 77, base.text_widths()[0]), &Device::Cpu).unwrap();
    let encoded = EncodedText { context: encoded, pooled: None };
    let prompt = |text| LeakPrompt { prompt: "sks".into(), has_trigger: true, text };
    let score = measure(&network, &probes, &[prompt(Text::Encoded(encoded)), prompt(text(&base, "sks"))]);
    assert!(score.per_prompt[0].change == 0.0, "its text does not pass the factors: {score:?}");
    assert!(score.per_prompt[1].change > 1e-6, "{score:?}");
    assert!(score.without_trigger == 0.0, "none were asked");
}

#[test]
fn places_are_the_same_for_the_same_seed_and_each_has_its_stretch_of_the_schedule() {
    let base = base("sd1");
    let schedule = base.noise_schedule();
    let (a, again, other) = (probes(&base, 7, 1), probes(&base, 7, 1), probes(&base, 7, 2));
    assert_eq!((numbers(&a.latents), numbers(&a.noise)), (numbers(&again.latents), numbers(&again.noise)));
    assert_eq!(a.timesteps, again.timesteps);
    assert!(numbers(&a.noise) != numbers(&other.noise) && a.timesteps != other.timesteps);
    assert!(numbers(&a.noise) != numbers(&a.latents));
    let num_timesteps = schedule.num_timesteps() as i64;
    for (i, t) in (0..).zip(&a.timesteps) {
        assert!((i * num_timesteps / 7..(i + 1) * num_timesteps / 7).contains(t), "{:?}", a.timesteps);
    }
    // Two pictures take turns.
    let pictures = Tensor::stack(&[a.latents.get(0).unwrap(), a.latents.get(1).unwrap()], 0).unwrap();
    let given = LeakProbes::new(&pictures, 5, &schedule, 1).unwrap();
    for place in 0..5 {
        let at = |of: &Tensor, i: usize| numbers(&of.get(i).unwrap());
        assert_eq!(at(&given.latents, place), at(&pictures, place % 2));
    }
}

#[test]
fn every_comparison_is_told() {
    let (base, adapter) = (base("sd1"), adapter("sd1"));
    let mut told = Vec::new();
    let (network, probes) = (network(&base, &adapter), probes(&base, 45, 3));
    LeakScore::measure(&network, &probes, &prompts(&base)[..2], &mut |done| told.push(done)).unwrap();
    assert!(told.is_sorted() && told.last() == Some(&90), "{told:?}");
}
