//! Updates of samplers through a probe.

use super::error::{error_of, worse};
use super::{Call, Kind, Probe, need, unchecked};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::ddim::{DdimDims, DdimStep, reference as ddim};
use crate::ops::sampler_step::{Coefficients, SamplerStep, StepDims, StepNoise, StepState, Threshold};

impl<B: Backend> DdimStep for Probe<'_, B> {
    fn ddim_step(
        &self,
        d: &DdimDims,
        pred: B::Slice<'_>,
        now: B::Slice<'_>,
        next: B::Slice<'_>,
        x: B::SliceMut<'_>,
        pred_image: Option<B::SliceMut<'_>>,
    ) -> Result<()> {
        let call = Call::new("ddim_step", Kind::Sampler, format!("{}x{}", d.n, d.per_image))
            .option("image", pred_image.is_some())
            .reads(extents!(B; Some(pred), Some(now), Some(next)))
            .updates();
        let op = |[x, image]: [Option<B::SliceMut<'_>>; 2]| self.inner.ddim_step(d, pred, now, next, need(x)?, image);
        self.call(call, lent!(B; Some(x), pred_image), op, |before, after| {
            let [pred, now, next] = [self.fetch(pred)?, self.fetch(now)?, self.fetch(next)?];
            let (x, image) = ddim::ddim_step(d, &pred, &now, &next, &before[0]);
            Ok(worse(error_of(&after[0], &x), error_of(&after[1], &image)))
        })
    }
}

impl<B: Backend> SamplerStep for Probe<'_, B> {
    fn sampler_step(
        &self,
        d: &StepDims,
        c: &Coefficients,
        threshold: Threshold,
        pred: B::Slice<'_>,
        noise: Option<StepNoise<'_, Self>>,
        state: StepState<'_, Self>,
    ) -> Result<()> {
        let key = noise.map(|noise| (noise.seed, noise.call, noise.first_image));
        let call = Call::new("sampler_step", Kind::Sampler, format!("{}x{}", d.n, d.per_image))
            .option("noise", c.f != 0.0)
            .option("keep", c.keep)
            .option("dynamic", matches!(threshold, Threshold::Dynamic { .. }))
            .reads(extents!(B; Some(pred)))
            .updates();
        let op = |[x, x0, kept]: [Option<B::SliceMut<'_>>; 3]| {
            let noise = key.map(|(seed, call, first_image)| StepNoise { seed, call, first_image });
            let state = StepState { x: need(x)?, x0: need(x0)?, kept };
            self.inner.sampler_step(d, c, threshold, pred, noise, state)
        };
        self.call(call, lent!(B; Some(state.x), Some(state.x0), state.kept), op, |before, after| {
            if c.f != 0.0 {
                return Ok(None);
            }
            let pred = self.fetch(pred)?;
            let zeros = vec![0.0; pred.len()];
            // What has no factor may hold anything.
            let used = |factor: f32, values: &Vec<f64>| {
                if factor == 0.0 || values.is_empty() { zeros.clone() } else { values.clone() }
            };
            let operands = crate::ops::sampler_step::reference::Operands {
                pred: &pred,
                x: &before[0],
                kept: &used(c.b, &before[2]),
                last_x0: &used(c.e, &before[1]),
                noise: &zeros,
            };
            let per_image = d.per_image as usize;
            let (x, _) = crate::ops::sampler_step::reference::sampler_step(per_image, c, threshold, operands);
            Ok(error_of(&after[0], &x))
        })
    }

    fn combine(&self, a: f32, x: B::Slice<'_>, b: f32, y: Option<B::Slice<'_>>, out: B::SliceMut<'_>) -> Result<()> {
        let call = Call::new("combine", Kind::Sampler, B::extent(x).len.to_string())
            .option("two", y.is_some())
            .reads(extents!(B; Some(x), y));
        let op = |[out]: [Option<B::SliceMut<'_>>; 1]| self.inner.combine(a, x, b, y, need(out)?);
        self.call(call, lent!(B; Some(out)), op, unchecked)
    }

    fn blend(
        &self,
        rates: [f32; 2],
        mask: B::Slice<'_>,
        known: B::Slice<'_>,
        noise: B::Slice<'_>,
        x: B::SliceMut<'_>,
    ) -> Result<()> {
        let call = Call::new("blend", Kind::Sampler, B::extent(mask).len.to_string())
            .reads(extents!(B; Some(mask), Some(known), Some(noise)))
            .updates();
        let op = |[x]: [Option<B::SliceMut<'_>>; 1]| self.inner.blend(rates, mask, known, noise, need(x)?);
        self.call(call, lent!(B; Some(x)), op, unchecked)
    }
}
