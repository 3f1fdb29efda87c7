//! What a step of training does beside the network, through a probe.

use super::error::{error_of, first, worse};
use super::{Call, Kind, Probe, need, unchecked};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::adam::{Adam, AdamScalars, AdamState};
use crate::ops::grad_norm::{GradNorm, reference as grad_norm};
use crate::ops::images::Images;
use crate::ops::levels::{Levels, LevelsOutput, reference as levels};
use crate::ops::loss::{Loss, LossDims, LossInput, reference as loss};
use crate::ops::noise::{Noise, NoiseKey, reference as noise};
use crate::ops::schedule::{Schedule, ScheduleDims, ScheduleOutput, reference as schedule};

/// Elements of elementwise results that are compared.
const COMPARED: usize = 1 << 16;

/// The number of a step from the slot that holds it.
fn step_of(slot: &[f64]) -> u64 {
    slot.first().map_or(0, |&v| u64::from((v as f32).to_bits()))
}

impl<B: Backend> Adam for Probe<'_, B> {
    fn adam_step(
        &self,
        scalars: B::Slice<'_>,
        guard: Option<B::Slice<'_>>,
        state: AdamState<'_, '_, Self>,
    ) -> Result<()> {
        let AdamState { params, grads, m, v, ema, clip } = state;
        let call = Call::new("adam_step", Kind::Adam, B::extent(grads).len.to_string())
            .option("ema", ema.is_some())
            .option("clip", clip.is_some())
            .reads(extents!(B; Some(scalars), guard, Some(grads), clip))
            .updates();
        let op = |[params, m, v, ema]: [Option<B::SliceMut<'_>>; 4]| {
            let state = AdamState { params: need(params)?, grads, m: need(m)?, v: need(v)?, ema, clip };
            self.inner.adam_step(scalars, guard, state)
        };
        self.call(call, lent!(B; Some(params), Some(m), Some(v), ema), op, |before, after| {
            let scalars: Vec<f32> = self.fetch(scalars)?.iter().map(|&v| v as f32).collect();
            let k: AdamScalars = bytemuck::pod_read_unaligned(bytemuck::cast_slice(first_f32(&scalars)));
            let [gain1, gain2, size, correction, eps, shrink, decay, gain_ema] =
                [k.gain1, k.gain2, k.step_size, k.correction, k.eps, k.shrink, k.decay, k.gain_ema].map(f64::from);
            let clip = self.fetch_opt(clip)?.map_or(1.0, |clip| clip[0]);
            let grads = self.fetch(grads)?;
            let [p0, m0, v0, e0] = before;
            let (mut params, mut averages) = (vec![], vec![]);
            for i in 0..p0.len().min(COMPARED) {
                let g = grads[i] * clip + decay * p0[i];
                let m = m0[i] + gain1 * (g - m0[i]);
                let v = v0[i] + gain2 * (g * g - v0[i]);
                let p = p0[i] * shrink - size * (m / (v.sqrt() * correction + eps));
                params.push(p);
                averages.extend(e0.get(i).map(|e| e + gain_ema * (p - e)));
            }
            let [got, ema] = [first(&after[0], params.len()), first(&after[3], averages.len())];
            Ok(worse(error_of(got, &params), error_of(ema, &averages)))
        })
    }

    fn ema_update(
        &self,
        scalars: B::Slice<'_>,
        guard: Option<B::Slice<'_>>,
        src: B::Slice<'_>,
        ema: B::SliceMut<'_>,
    ) -> Result<()> {
        let call = Call::new("ema_update", Kind::Adam, B::extent(src).len.to_string())
            .reads(extents!(B; Some(scalars), guard, Some(src)))
            .updates();
        let op = |[ema]: [Option<B::SliceMut<'_>>; 1]| self.inner.ema_update(scalars, guard, src, need(ema)?);
        self.call(call, lent!(B; Some(ema)), op, |before, after| {
            let gain = self.fetch(scalars)?[AdamScalars::LEN - 1];
            let want: Vec<f64> = before[0].iter().zip(self.fetch(src)?).map(|(e, p)| e + gain * (p - e)).collect();
            Ok(error_of(&after[0], &want))
        })
    }
}

/// As many numbers as the scalars are.
fn first_f32(scalars: &[f32]) -> &[f32] {
    &scalars[..AdamScalars::LEN.min(scalars.len())]
}

impl<B: Backend> GradNorm for Probe<'_, B> {
    fn grad_norm(&self, limit: f32, grads: B::Slice<'_>, out: B::SliceMut<'_>) -> Result<()> {
        let from = B::extent(grads);
        let call = Call::new("grad_norm", Kind::Adam, from.len.to_string()).reads([Some(from)]);
        let op = |[out]: [Option<B::SliceMut<'_>>; 1]| self.inner.grad_norm(limit, grads, need(out)?);
        self.call(call, lent!(B; Some(out)), op, |_, after| {
            let (norm, factor) = grad_norm::grad_norm(f64::from(limit), &self.fetch(grads)?);
            Ok(worse(error_of(&after[0][..1], &[norm]), error_of(&after[0][1..], &[factor])))
        })
    }
}

impl<B: Backend> Images for Probe<'_, B> {
    fn normalize(&self, bytes: &B::Bytes, mean_std: B::Slice<'_>, x: B::SliceMut<'_>) -> Result<()> {
        let len = B::extent(B::shared(&x)).len;
        let mut call = Call::new("normalize", Kind::Images, len.to_string()).reads([Some(B::extent(mean_std))]);
        call.bytes += len as u64;
        self.call(call, lent!(B; Some(x)), |[x]| self.inner.normalize(bytes, mean_std, need(x)?), unchecked)
    }

    fn denormalize(&self, mean_std: B::Slice<'_>, x: B::SliceMut<'_>) -> Result<()> {
        let len = B::extent(B::shared(&x)).len;
        let call = Call::new("denormalize", Kind::Images, len.to_string()).reads([Some(B::extent(mean_std))]).updates();
        let op = |[x]: [Option<B::SliceMut<'_>>; 1]| self.inner.denormalize(mean_std, need(x)?);
        self.call(call, lent!(B; Some(x)), op, |before, after| {
            let of = self.fetch(mean_std)?;
            let (mean, std) = of.split_at(of.len() / 2);
            Ok(error_of(&after[0], &crate::ops::images::reference::denormalize(&before[0], mean, std)))
        })
    }
}

impl<B: Backend> Levels for Probe<'_, B> {
    fn gather_levels(&self, table: B::Slice<'_>, times: B::Slice<'_>, out: LevelsOutput<'_, Self>) -> Result<()> {
        let call =
            Call::new("gather_levels", Kind::Noise, B::extent(times).len.to_string()).reads([Some(B::extent(times))]);
        let op = |[rates, timesteps, weights]: [Option<B::SliceMut<'_>>; 3]| {
            let (rates, timesteps, weights) = (need(rates)?, need(timesteps)?, need(weights)?);
            self.inner.gather_levels(table, times, LevelsOutput { rates, timesteps, weights })
        };
        self.call(call, lent!(B; Some(out.rates), Some(out.timesteps), Some(out.weights)), op, |_, after| {
            let times: Vec<f32> = self.fetch(times)?.iter().map(|&t| t as f32).collect();
            let (rates, timesteps, weights) = levels::gather_levels(&self.fetch(table)?, &times);
            let weights = error_of(&after[2], &weights);
            Ok(worse(worse(error_of(&after[0], &rates), error_of(&after[1], &timesteps)), weights))
        })
    }
}

impl<B: Backend> Loss for Probe<'_, B> {
    fn loss(
        &self,
        d: &LossDims,
        input: LossInput<'_, Self>,
        dp: Option<B::SliceMut<'_>>,
        out: B::SliceMut<'_>,
    ) -> Result<()> {
        let LossInput { pred, noisy, images, noise, rates, weights } = input;
        let through = || LossInput { pred, noisy, images, noise, rates, weights };
        let call = Call::new("loss", Kind::Loss, format!("{}x{}", d.n, d.per_image))
            .option("gradient", dp.is_some())
            .option("weights", weights.is_some())
            .reads(extents!(B; Some(pred), Some(noisy), Some(images), Some(noise), Some(rates), weights));
        let mut call = call;
        call.updates = d.add == 1;
        let op = |[dp, out]: [Option<B::SliceMut<'_>>; 2]| self.inner.loss(d, through(), dp, need(out)?);
        self.call(call, lent!(B; dp, Some(out)), op, |before, after| {
            let [pred, noisy, images, noise] =
                [self.fetch(pred)?, self.fetch(noisy)?, self.fetch(images)?, self.fetch(noise)?];
            let (rates, weights) = (self.fetch(rates)?, self.fetch_opt(weights)?);
            let input = loss::LossInput {
                pred: &pred,
                noisy: &noisy,
                images: &images,
                noise: &noise,
                rates: &rates,
                weights: weights.as_deref(),
            };
            let (values, dp) = loss::loss(d, input);
            let mut want = vec![values.loss, values.noise_loss, values.image_loss];
            want.iter_mut().zip(&before[1]).for_each(|(want, old)| *want += old);
            Ok(worse(error_of(&after[1], &want), error_of(&after[0], &dp)))
        })
    }

    fn split_prediction(
        &self,
        d: &LossDims,
        pred: B::Slice<'_>,
        noisy: B::Slice<'_>,
        rates: B::Slice<'_>,
        pred_noise: B::SliceMut<'_>,
        pred_image: B::SliceMut<'_>,
    ) -> Result<()> {
        let call = Call::new("split_prediction", Kind::Sampler, format!("{}x{}", d.n, d.per_image))
            .reads(extents!(B; Some(pred), Some(noisy), Some(rates)));
        let op = |[noise, image]: [Option<B::SliceMut<'_>>; 2]| {
            self.inner.split_prediction(d, pred, noisy, rates, need(noise)?, need(image)?)
        };
        self.call(call, lent!(B; Some(pred_noise), Some(pred_image)), op, |_, after| {
            let (pred, noisy, rates) = (self.fetch(pred)?, self.fetch(noisy)?, self.fetch(rates)?);
            let (noise, image) = loss::split_prediction(d, &pred, &noisy, &rates);
            Ok(worse(error_of(&after[0], &noise), error_of(&after[1], &image)))
        })
    }
}

impl<B: Backend> Noise for Probe<'_, B> {
    fn fill_normal(&self, key: NoiseKey, step: B::Slice<'_>, per_image: usize, out: B::SliceMut<'_>) -> Result<()> {
        let len = B::extent(B::shared(&out)).len;
        let call = Call::new("fill_normal", Kind::Noise, format!("{}x{per_image}", len / per_image.max(1)));
        let op = |[out]: [Option<B::SliceMut<'_>>; 1]| self.inner.fill_normal(key, step, per_image, need(out)?);
        self.call(call, lent!(B; Some(out)), op, |_, after| {
            let want = noise::normal(key, step_of(&self.fetch(step)?), per_image, 1);
            Ok(error_of(first(&after[0], want.len()), &want))
        })
    }

    fn fill_uniform(&self, key: NoiseKey, step: B::Slice<'_>, out: B::SliceMut<'_>) -> Result<()> {
        let len = B::extent(B::shared(&out)).len;
        let call = Call::new("fill_uniform", Kind::Noise, len.to_string());
        let op = |[out]: [Option<B::SliceMut<'_>>; 1]| self.inner.fill_uniform(key, step, need(out)?);
        self.call(call, lent!(B; Some(out)), op, |_, after| {
            Ok(error_of(&after[0], &noise::uniform(key, step_of(&self.fetch(step)?), len)))
        })
    }

    fn offset_noise(
        &self,
        key: NoiseKey,
        step: B::Slice<'_>,
        strength: f32,
        shape: [usize; 2],
        noise: B::SliceMut<'_>,
    ) -> Result<()> {
        let len = B::extent(B::shared(&noise)).len;
        let call = Call::new("offset_noise", Kind::Noise, len.to_string()).updates();
        let op =
            |[noise]: [Option<B::SliceMut<'_>>; 1]| self.inner.offset_noise(key, step, strength, shape, need(noise)?);
        self.call(call, lent!(B; Some(noise)), op, unchecked)
    }

    fn q_sample(
        &self,
        images: B::Slice<'_>,
        noise: B::Slice<'_>,
        rates: B::Slice<'_>,
        noisy: B::SliceMut<'_>,
    ) -> Result<()> {
        let call = Call::new("q_sample", Kind::Noise, B::extent(images).len.to_string())
            .reads(extents!(B; Some(images), Some(noise), Some(rates)));
        let op = |[noisy]: [Option<B::SliceMut<'_>>; 1]| self.inner.q_sample(images, noise, rates, need(noisy)?);
        self.call(call, lent!(B; Some(noisy)), op, |_, after| {
            let want = noise::q_sample(&self.fetch(images)?, &self.fetch(noise)?, &self.fetch(rates)?);
            Ok(error_of(&after[0], &want))
        })
    }
}

impl<B: Backend> Schedule for Probe<'_, B> {
    fn schedule(&self, d: &ScheduleDims, times: B::Slice<'_>, out: ScheduleOutput<'_, Self>) -> Result<()> {
        let call = Call::new("schedule", Kind::Noise, format!("{} c{}", d.n, d.e)).reads([Some(B::extent(times))]);
        let op = |[rates, embedding, stats]: [Option<B::SliceMut<'_>>; 3]| {
            let (rates, embedding, stats) = (need(rates)?, need(embedding)?, need(stats)?);
            self.inner.schedule(d, times, ScheduleOutput { rates, embedding, stats })
        };
        self.call(call, lent!(B; Some(out.rates), Some(out.embedding), Some(out.stats)), op, |_, after| {
            let (rates, embedding) = schedule::schedule(d, &self.fetch(times)?);
            Ok(worse(error_of(&after[0], &rates), error_of(&after[1], &embedding)))
        })
    }
}
