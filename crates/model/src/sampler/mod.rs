//! From noise to latents: the samplers that most pictures are made with.
//!
//! All of them walk over latents x = alpha x_0 + sigma noise and are told at each stop what the network takes for x_0
//! and for the noise; they differ in where they stop and in how they go on. Their numbers are those of diffusers'
//! schedulers of the same names, made by `from_config` of the base's scheduler.

mod ddim;
mod dpmpp_2m;
mod euler;
mod euler_ancestral;
mod time_grid;
mod unipc;

use crate::config::Prediction;
use crate::noise_schedule::NoiseSchedule;
use candle_core::{Result, Tensor};
use ddim::Ddim;
use dpmpp_2m::DpmPp2m;
use euler::Euler;
use euler_ancestral::EulerAncestral;
use time_grid::Mix;
use unipc::UniPc;

/// Which sampler.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SamplerKind {
    /// DDIM, eta 0.
    #[default]
    Ddim,
    /// Euler ancestral.
    EulerAncestral,
    /// DPM-Solver++ (2M).
    DpmPp2m,
    /// UniPC, order 2, bh2.
    UniPc,
    /// Euler, without churn.
    Euler,
}

impl SamplerKind {
    /// Each with its name on the command line and the name that A1111 writes into pictures.
    pub const ALL: [(Self, &'static str, &'static str); 5] = [
        (Self::Ddim, "ddim", "DDIM"),
        (Self::EulerAncestral, "euler-a", "Euler a"),
        (Self::DpmPp2m, "dpmpp-2m", "DPM++ 2M"),
        (Self::UniPc, "unipc", "UniPC"),
        (Self::Euler, "euler", "Euler"),
    ];

    /// By its name on the command line.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known, _)| *known == name).map(|(kind, ..)| *kind)
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, ..)| *kind == self).map_or("", |(_, name, _)| name)
    }

    /// The name that A1111 writes into pictures.
    pub fn title(self) -> &'static str {
        Self::ALL.iter().find(|(kind, ..)| *kind == self).map_or("", |(.., title)| title)
    }
}

/// The stops of a sampler.
struct Walk {
    /// The timestep that the network is told at each stop.
    times: Vec<f64>,
    /// What the latents are made of there.
    mixes: Vec<Mix>,
    /// How much noise of variance 1 the first stop begins with.
    first_noise: f64,
}

/// What the network takes noisy latents to be made of.
struct Estimate {
    /// x_0: (b, 4, h, w).
    clean: Tensor,
    /// The noise, of variance 1.
    noise: Tensor,
}

/// How a sampler goes from one stop to the next.
trait Solver {
    /// The latents at stop `i` + 1, from those at stop `i`, the estimate there and, for samplers that add noise, fresh
    /// noise of variance 1.
    fn step(&mut self, i: usize, sample: &Tensor, estimate: &Estimate, fresh: Option<&Tensor>) -> Result<Tensor>;

    fn adds_noise(&self) -> bool {
        false
    }
}

/// A sampler on its way.
pub struct Sampler {
    walk: Walk,
    solver: Box<dyn Solver>,
    prediction: Prediction,
    position: usize,
}

impl Sampler {
    /// `num_steps`: 1 to [`NoiseSchedule::num_timesteps`]; it is brought into this range.
    pub fn new(kind: SamplerKind, schedule: &NoiseSchedule, num_steps: usize) -> Self {
        let num_steps = num_steps.clamp(1, schedule.num_timesteps());
        let (walk, solver) = match kind {
            SamplerKind::Ddim => boxed(Ddim::new(schedule, num_steps)),
            SamplerKind::EulerAncestral => boxed(EulerAncestral::new(schedule, num_steps)),
            SamplerKind::DpmPp2m => boxed(DpmPp2m::new(schedule, num_steps)),
            SamplerKind::UniPc => boxed(UniPc::new(schedule, num_steps)),
            SamplerKind::Euler => boxed(Euler::new(schedule, num_steps)),
        };
        Self { walk, solver, prediction: schedule.prediction(), position: 0 }
    }

    /// Steps that are left.
    pub fn steps_left(&self) -> usize {
        self.walk.times.len() - self.position
    }

    /// The timestep to tell the network now; not whole for every sampler. `None` at the end.
    pub fn timestep(&self) -> Option<f64> {
        self.walk.times.get(self.position).copied()
    }

    /// The latents to begin with, from noise of variance 1: (b, 4, h, w).
    ///
    /// # Errors
    /// If there is no memory.
    pub fn begin(&self, noise: &Tensor) -> Result<Tensor> {
        noise * self.walk.first_noise
    }

    /// Whether [`Sampler::step`] wants fresh noise: not in the last step, which ends without.
    pub fn wants_noise(&self) -> bool {
        self.solver.adds_noise() && self.steps_left() > 1
    }

    /// The latents at the next stop, from those here, what the network predicts for them and, if wanted, noise of
    /// variance 1; all (b, 4, h, w), f32.
    ///
    /// # Errors
    /// If the shapes differ, or at the end of the way.
    pub fn step(&mut self, sample: &Tensor, prediction: &Tensor, fresh: Option<&Tensor>) -> Result<Tensor> {
        let estimate = self.estimate(sample, prediction)?;
        let next = self.solver.step(self.position, sample, &estimate, fresh)?;
        self.position += 1;
        Ok(next)
    }

    /// What the network takes for x_0 at this stop, from the latents here and what it predicts for them; all (b, 4, h, w).
    ///
    /// # Errors
    /// As [`Sampler::step`].
    pub fn clean(&self, sample: &Tensor, prediction: &Tensor) -> Result<Tensor> {
        Ok(self.estimate(sample, prediction)?.clean)
    }

    fn estimate(&self, sample: &Tensor, prediction: &Tensor) -> Result<Estimate> {
        let Some(Mix { alpha, sigma }) = self.walk.mixes.get(self.position).copied() else {
            candle_core::bail!("the sampler is at its end")
        };
        Ok(match self.prediction {
            Prediction::Epsilon => Estimate {
                clean: combine(&[(1.0 / alpha, sample), (-sigma / alpha, prediction)])?,
                noise: prediction.clone(),
            },
            Prediction::VPrediction => Estimate {
                clean: combine(&[(alpha, sample), (-sigma, prediction)])?,
                noise: combine(&[(alpha, prediction), (sigma, sample)])?,
            },
        })
    }
}

fn boxed<S: Solver + 'static>((walk, solver): (Walk, S)) -> (Walk, Box<dyn Solver>) {
    (walk, Box::new(solver))
}

/// The weighted sum of latents.
fn combine(terms: &[(f64, &Tensor)]) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for (weight, tensor) in terms {
        let term = (*tensor * *weight)?;
        sum = Some(match sum {
            Some(sum) => (sum + term)?,
            None => term,
        });
    }
    sum.ok_or_else(|| candle_core::Error::Msg("a sum of nothing".into()))
}
