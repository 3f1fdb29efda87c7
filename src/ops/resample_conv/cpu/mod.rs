//! CPU kernels of the convolutions that change the resolution: 9 products for each pixel of the small side, in every direction.
//!
//! Two products serve all four cases (see the parent module). One gathers: each small pixel from the 3x3 large pixels around it. The other, its transpose,
//! spreads: each large pixel from the one, two or four small pixels that reach it, by its row and column being even or odd. With doubling, a sum over
//! 2x2 windows comes before the one (while the band is made) or after the other (while the result is written).
//!
//! The cut into units depends on the shape of a picture alone and each output is summed in the same order whatever the unit, so results depend neither on
//! threads nor on the batch.

mod plan;
mod product;
mod wgrad;

use super::{ResampleConv, ResampleConvDims, ResampleConvGradients, Resampling};
use crate::device::cpu::Cpu;
use crate::error::Result;
use crate::ops::conv::Direction;
use crate::ops::expect_len;
use plan::Plan;

const OP: &str = "resample_conv";

impl ResampleConv for Cpu {
    fn resample_conv_packed_len(&self, dims: &ResampleConvDims, direction: Direction) -> usize {
        Plan::new(dims, direction).packed_len(self.isa().lanes())
    }

    fn resample_conv_pack(
        &self,
        dims: &ResampleConvDims,
        direction: Direction,
        w: &[f32],
        packed: &mut [f32],
    ) -> Result<()> {
        dims.validate()?;
        let plan = Plan::new(dims, direction);
        expect_len(OP, "w", w.len(), 9 * plan.c * plan.k)?;
        expect_len(OP, "packed", packed.len(), plan.packed_len(self.isa().lanes()))?;
        plan.pack(self, direction, w, packed);
        Ok(())
    }

    fn resample_conv<'a>(
        &self,
        dims: &ResampleConvDims,
        x: &'a [f32],
        packed: &'a [f32],
        biases: [Option<&'a [f32]>; 2],
        y: &mut [f32],
        stats: Option<&mut [f32]>,
    ) -> Result<()> {
        dims.validate()?;
        let (n, k) = (dims.n as usize, dims.k as usize);
        expect_len(OP, "x", x.len(), dims.input_len())?;
        expect_len(OP, "y", y.len(), dims.output_len())?;
        for bias in biases.into_iter().flatten() {
            if bias.len() != n * k {
                expect_len(OP, "bias", bias.len(), k)?;
            }
        }
        if let Some(stats) = &stats {
            expect_len(OP, "stats", stats.len(), n * k * 2)?;
        }
        let plan = Plan::new(dims, Direction::Forward);
        expect_len(OP, "packed", packed.len(), plan.packed_len(self.isa().lanes()))?;
        product::run(self, plan, x, packed, biases, None, y, stats);
        Ok(())
    }

    fn resample_conv_backward<'a>(
        &self,
        dims: &ResampleConvDims,
        x: &'a [f32],
        packed: &'a [f32],
        dy: &'a [f32],
        add: Option<&'a [f32]>,
        out: ResampleConvGradients<'_, Self>,
    ) -> Result<()> {
        dims.validate()?;
        let ResampleConvGradients { dx, dw, db } = out;
        let (c, k) = (dims.c as usize, dims.k as usize);
        expect_len(OP, "x", x.len(), dims.input_len())?;
        expect_len(OP, "dy", dy.len(), dims.output_len())?;
        expect_len(OP, "dx", dx.len(), dims.input_len())?;
        expect_len(OP, "dw", dw.len(), 9 * c * k)?;
        expect_len(OP, "db", db.len(), k)?;
        if let Some(add) = add {
            expect_len(OP, "add", add.len(), dims.input_len())?;
        }
        let plan = Plan::new(dims, Direction::Dgrad);
        expect_len(OP, "packed", packed.len(), plan.packed_len(self.isa().lanes()))?;
        wgrad::wgrad(self, dims, x, dy, dw, db)?;
        product::run(self, plan, dy, packed, [None; 2], add, dx, None);
        Ok(())
    }
}

/// The row and column that is kept of two; that of the transpose, where pixels are doubled.
fn offset(dims: &ResampleConvDims) -> usize {
    match dims.resampling {
        Resampling::Double => 0,
        Resampling::Keep { offset } => offset as usize,
    }
}
