//! Attention, linear layers and embeddings through a probe.

use super::error::{error_of, first, worse};
use super::{Call, Kind, Probe, need, unchecked};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::attention::{Attention, AttentionDims, reference as attention};
use crate::ops::embed::{Embed, TimestepDims, reference as embed};
use crate::ops::linear::{Linear, LinearDims, LinearGradients, reference as linear};

fn attention_shape(d: &AttentionDims) -> String {
    format!("{} tokens {} heads {}x{}", d.n, d.tokens, d.heads, d.head_dim)
}

/// Head 0 of image 0 of [N, T, parts, heads, D], as [T, parts, D].
fn head(d: &AttentionDims, values: &[f64], parts: usize) -> Vec<f64> {
    let (heads, dim) = (d.heads as usize, d.head_dim as usize);
    let rows = 0..d.tokens as usize * parts;
    rows.flat_map(|row| values[row * heads * dim..][..dim].iter().copied()).collect()
}

impl<B: Backend> Attention for Probe<'_, B> {
    fn attention(&self, d: &AttentionDims, qkv: B::Slice<'_>, y: B::SliceMut<'_>, lse: B::SliceMut<'_>) -> Result<()> {
        let call =
            Call::new("attention", Kind::Attention, attention_shape(d)).flops(d.flops()).reads(extents!(B; Some(qkv)));
        let op = |[y, lse]: [Option<B::SliceMut<'_>>; 2]| self.inner.attention(d, qkv, need(y)?, need(lse)?);
        self.call(call, lent!(B; Some(y), Some(lse)), op, |_, after| {
            let one = AttentionDims { n: 1, heads: 1, ..*d };
            let (want, lse) = attention::forward(&one, &head(d, &self.fetch(qkv)?, 3));
            Ok(worse(error_of(&head(d, &after[0], 1), &want), error_of(first(&after[1], lse.len()), &lse)))
        })
    }

    fn attention_backward(
        &self,
        d: &AttentionDims,
        qkv: B::Slice<'_>,
        y: B::Slice<'_>,
        lse: B::Slice<'_>,
        dy: B::Slice<'_>,
        dqkv: B::SliceMut<'_>,
    ) -> Result<()> {
        let call = Call::new("attention_backward", Kind::AttentionBackward, attention_shape(d))
            .flops(d.flops() / 2 * 5)
            .reads(extents!(B; Some(qkv), Some(y), Some(lse), Some(dy)));
        let op = |[dqkv]: [Option<B::SliceMut<'_>>; 1]| self.inner.attention_backward(d, qkv, y, lse, dy, need(dqkv)?);
        self.call(call, lent!(B; Some(dqkv)), op, |_, after| {
            let one = AttentionDims { n: 1, heads: 1, ..*d };
            let want = attention::backward(&one, &head(d, &self.fetch(qkv)?, 3), &head(d, &self.fetch(dy)?, 1));
            Ok(error_of(&head(d, &after[0], 3), &want))
        })
    }
}

impl<B: Backend> Linear for Probe<'_, B> {
    fn linear(
        &self,
        d: &LinearDims,
        x: B::Slice<'_>,
        w: B::Slice<'_>,
        b: B::Slice<'_>,
        y: B::SliceMut<'_>,
    ) -> Result<()> {
        let flops = 2 * u64::from(d.n) * u64::from(d.c) * u64::from(d.k);
        let call = Call::new("linear", Kind::Linear, format!("{}x{}>{}", d.n, d.c, d.k))
            .option("silu", d.silu != 0)
            .flops(flops)
            .reads(extents!(B; Some(x), Some(w), Some(b)));
        let op = |[y]: [Option<B::SliceMut<'_>>; 1]| self.inner.linear(d, x, w, b, need(y)?);
        self.call(call, lent!(B; Some(y)), op, |_, after| {
            let want = linear::forward(d, &self.fetch(x)?, &self.fetch(w)?, &self.fetch(b)?);
            Ok(error_of(&after[0], &want))
        })
    }

    fn linear_backward(
        &self,
        d: &LinearDims,
        x: B::Slice<'_>,
        w: B::Slice<'_>,
        dy: B::Slice<'_>,
        out: LinearGradients<'_, Self>,
    ) -> Result<()> {
        let LinearGradients { dx, accumulate, dw, db } = out;
        let products = if dx.is_some() { 4 } else { 2 };
        let call = Call::new("linear_backward", Kind::Linear, format!("{}x{}>{}", d.n, d.c, d.k))
            .option("silu", d.silu != 0)
            .option("dx", dx.is_some())
            .flops(products * u64::from(d.n) * u64::from(d.c) * u64::from(d.k))
            .reads(extents!(B; Some(x), Some(w), Some(dy)))
            .updates();
        let op = |[dx, dw, db]: [Option<B::SliceMut<'_>>; 3]| {
            self.inner.linear_backward(d, x, w, dy, LinearGradients { dx, accumulate, dw: need(dw)?, db: need(db)? })
        };
        self.call(call, lent!(B; dx, Some(dw), Some(db)), op, |before, after| {
            let (dx, dw, db) = linear::backward(d, &self.fetch(x)?, &self.fetch(w)?, &self.fetch(dy)?);
            let plus = |sum: Vec<f64>, old: &[f64]| -> Vec<f64> { sum.iter().zip(old).map(|(a, b)| a + b).collect() };
            let dx = if accumulate { plus(dx, &before[0]) } else { dx };
            let [dw, db] = [plus(dw, &before[1]), plus(db, &before[2])];
            Ok(worse(worse(error_of(&after[0], &dx), error_of(&after[1], &dw)), error_of(&after[2], &db)))
        })
    }
}

impl<B: Backend> Embed for Probe<'_, B> {
    fn embed_timesteps(
        &self,
        d: &TimestepDims,
        timesteps: B::Slice<'_>,
        frequencies: Option<B::Slice<'_>>,
        emb: B::SliceMut<'_>,
    ) -> Result<()> {
        let call = Call::new("embed_timesteps", Kind::Linear, format!("{} c{}", d.n, d.c))
            .option("fourier", frequencies.is_some())
            .reads(extents!(B; Some(timesteps), frequencies));
        let op =
            |[emb]: [Option<B::SliceMut<'_>>; 1]| self.inner.embed_timesteps(d, timesteps, frequencies, need(emb)?);
        self.call(call, lent!(B; Some(emb)), op, |_, after| {
            let timesteps = self.fetch(timesteps)?;
            let want = match self.fetch_opt(frequencies)? {
                Some(frequencies) => embed::fourier(d, &timesteps, &frequencies),
                None => embed::positional(d, &timesteps),
            };
            Ok(error_of(&after[0], &want))
        })
    }

    fn embed_classes(&self, labels: B::Slice<'_>, table: B::Slice<'_>, emb: B::SliceMut<'_>) -> Result<()> {
        let call = Call::new("embed_classes", Kind::Linear, B::extent(table).len.to_string())
            .reads([Some(B::extent(labels))])
            .updates();
        let op = |[emb]: [Option<B::SliceMut<'_>>; 1]| self.inner.embed_classes(labels, table, need(emb)?);
        self.call(call, lent!(B; Some(emb)), op, unchecked)
    }

    fn embed_classes_backward(&self, labels: B::Slice<'_>, demb: B::Slice<'_>, dtable: B::SliceMut<'_>) -> Result<()> {
        let call = Call::new("embed_classes_backward", Kind::Linear, B::extent(demb).len.to_string())
            .reads(extents!(B; Some(labels), Some(demb)))
            .updates();
        let op =
            |[dtable]: [Option<B::SliceMut<'_>>; 1]| self.inner.embed_classes_backward(labels, demb, need(dtable)?);
        self.call(call, lent!(B; Some(dtable)), op, unchecked)
    }

    fn divide_by_timesteps(&self, timesteps: B::Slice<'_>, x: B::SliceMut<'_>) -> Result<()> {
        let len = B::extent(B::shared(&x)).len;
        let call = Call::new("divide_by_timesteps", Kind::Linear, len.to_string())
            .reads([Some(B::extent(timesteps))])
            .updates();
        let op = |[x]: [Option<B::SliceMut<'_>>; 1]| self.inner.divide_by_timesteps(timesteps, need(x)?);
        self.call(call, lent!(B; Some(x)), op, |before, after| {
            let timesteps = self.fetch(timesteps)?;
            let per_image = len / timesteps.len().max(1);
            let want: Vec<f64> = before[0].iter().enumerate().map(|(i, x)| x / timesteps[i / per_image]).collect();
            Ok(error_of(&after[0], &want))
        })
    }
}
