//! The embedding of timesteps and classes (diffusers' `TimestepEmbedding`): `emb = linear_2(silu(linear_1(t_emb))) + table[class]`, [N, E]; float32 on
//! every device.

use super::layers::{Pass, lost, rows};
use crate::config::UnetConfig;
use crate::config::unet::TimeEmbedding;
use crate::error::{Error, Result};
use crate::model::params::{ConvParams, Layout, ParamId, Weights};
use crate::ops::Backend;
use crate::ops::embed::TimestepDims;
use crate::ops::linear::{LinearDims, LinearGradients};

/// Parameters and extents.
#[derive(Debug)]
pub(super) struct TimeMlp {
    linear1: ConvParams,
    linear2: ConvParams,
    /// Random, fixed frequencies of a fourier embedding.
    frequencies: Option<ParamId>,
    classes: Option<(ParamId, usize)>,
    /// Channels of the sines and cosines, and of the embedding.
    c: usize,
    e: usize,
    flip: bool,
    freq_shift: usize,
}

/// What backward needs: the sines and cosines, and what stands before SiLU.
pub(super) struct TimeCtx<B: Backend> {
    waves: B::Buffer,
    hidden: B::Buffer,
}

impl TimeMlp {
    pub fn new(l: &mut Layout, config: &UnetConfig) -> Self {
        let (first, e) = (config.block_out_channels[0], config.time_dim());
        let fourier = config.time_embedding_type == TimeEmbedding::Fourier;
        let c = if fourier { 2 * first } else { first };
        TimeMlp {
            frequencies: fourier.then(|| l.fixed_normal("time_proj.weight".into(), first, 16.0)),
            linear1: l.linear("time_embedding.linear_1", e, c),
            linear2: l.linear("time_embedding.linear_2", e, e),
            classes: config.num_class_embeds.map(|n| (l.table("class_embedding.weight".into(), n, e), n)),
            c,
            e,
            flip: config.flip_sin_to_cos,
            freq_shift: config.freq_shift,
        }
    }

    /// Channels of the embedding.
    pub fn e(&self) -> usize {
        self.e
    }

    /// The output of the network is divided by the timestep.
    pub fn divides(&self) -> bool {
        self.frequencies.is_some()
    }

    fn dims(&self, n: usize) -> [LinearDims; 2] {
        let [n, c, e] = [n, self.c, self.e].map(|x| x as u32);
        [LinearDims { n, c, k: e, silu: 0 }, LinearDims { n, c: e, k: e, silu: 1 }]
    }

    fn labels<'a, B: Backend>(&self, labels: Option<&'a B::Buffer>) -> Result<Option<(ParamId, usize, B::Slice<'a>)>> {
        match (self.classes, labels) {
            (Some((table, classes)), Some(labels)) => Ok(Some((table, classes, B::all(labels)))),
            (None, None) => Ok(None),
            (Some((_, n)), None) => Err(Error::Usage(format!(
                "the network knows {n} classes (unet.num_class_embeds), but no class was given: name one, or give the pictures' labels"
            ))),
            (None, Some(_)) => Err(Error::Usage(
                "a class was given, but the network knows none (unet.num_class_embeds is missing)".into(),
            )),
        }
    }

    pub fn forward<B: Backend>(
        &self,
        pass: &Pass<'_, '_, B>,
        weights: &Weights<B>,
        timesteps: &B::Buffer,
        labels: Option<&B::Buffer>,
    ) -> Result<(B::Buffer, Option<TimeCtx<B>>)> {
        let backend = pass.backend;
        let n = B::buffer_len(timesteps);
        let [dims1, dims2] = self.dims(n);
        let labels = self.labels::<B>(labels)?;
        let (mut waves, mut hidden) = (rows(backend, n, self.c)?, rows(backend, n, self.e)?);
        let dims = TimestepDims {
            n: n as u32,
            c: self.c as u32,
            flip: u32::from(self.flip),
            freq_shift: self.freq_shift as u32,
        };
        let frequencies = self.frequencies.map(|id| weights.stat(id));
        backend.embed_timesteps(&dims, B::all(timesteps), frequencies, B::all_mut(&mut waves))?;
        let p = |id| weights.param(id);
        let (l1, l2) = (&self.linear1, &self.linear2);
        backend.linear(&dims1, B::all(&waves), p(l1.w), p(l1.b), B::all_mut(&mut hidden))?;
        let mut emb = rows(backend, n, self.e)?;
        backend.linear(&dims2, B::all(&hidden), p(l2.w), p(l2.b), B::all_mut(&mut emb))?;
        if let Some((table, _, labels)) = labels {
            backend.embed_classes(labels, p(table), B::all_mut(&mut emb))?;
        }
        Ok((emb, pass.training().then_some(TimeCtx { waves, hidden })))
    }

    pub fn backward<B: Backend>(
        &self,
        pass: &Pass<'_, '_, B>,
        weights: &Weights<B>,
        grads: &mut B::Buffer,
        ctx: Option<TimeCtx<B>>,
        labels: Option<&B::Buffer>,
        demb: &B::Buffer,
    ) -> Result<()> {
        let backend = pass.backend;
        let Some(TimeCtx { waves, hidden }) = ctx else { return lost() };
        let n = B::buffer_len(demb) / self.e;
        let [dims1, dims2] = self.dims(n);
        let at = |id| weights.layout.range(id);
        if let Some((table, _, labels)) = self.labels::<B>(labels)? {
            #[allow(clippy::single_range_in_vec_init)] // one view, not a list of numbers
            let [dtable] = B::slices_mut(grads, [at(table)]);
            backend.embed_classes_backward(labels, B::all(demb), dtable)?;
        }
        let mut dhidden = rows(backend, n, self.e)?;
        let [dw, db] = B::slices_mut(grads, [at(self.linear2.w), at(self.linear2.b)]);
        let out = LinearGradients { dx: Some(B::all_mut(&mut dhidden)), accumulate: false, dw, db };
        backend.linear_backward(&dims2, B::all(&hidden), weights.param(self.linear2.w), B::all(demb), out)?;
        let [dw, db] = B::slices_mut(grads, [at(self.linear1.w), at(self.linear1.b)]);
        let out = LinearGradients { dx: None, accumulate: false, dw, db };
        backend.linear_backward(&dims1, B::all(&waves), weights.param(self.linear1.w), B::all(&dhidden), out)
    }
}
