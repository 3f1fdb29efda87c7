//! Bilinear interpolation to any size, forward only: PyTorch's `interpolate(mode="bilinear", align_corners=False, antialias=False)`.
//!
//! ```text
//! u = max(0, (i + 1/2) H / H' - 1/2),  i0 = floor(u),  i1 = min(i0 + 1, H - 1),  f = u - i0;   likewise v, j0, j1, g for columns
//! y[n,i,j] = (1-f) ((1-g) x[i0,j0] + g x[i0,j1]) + f ((1-g) x[i1,j0] + g x[i1,j1])
//! ```
//!
//! Places are computed in float64, weights are rounded to float32. Pictures that shrink by more than 2 lose detail to aliasing, as they do there.
//! **There is no backward**; the doubling that is trained is [`super::upsample`]. Everything is float32 on every device.

pub mod cpu;
mod gpu;
pub mod reference;

use bytemuck::{Pod, Zeroable};

use crate::device::Memory;
use crate::error::{Error, Result};

const OP: &str = "bilinear";

/// Extents, by value.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct BilinearDims {
    /// Images.
    pub n: u32,
    /// Rows of x.
    pub h: u32,
    /// Columns of x.
    pub w: u32,
    /// Channels.
    pub c: u32,
    /// Rows of y.
    pub out_h: u32,
    /// Columns of y.
    pub out_w: u32,
}

impl BilinearDims {
    /// Elements of x.
    pub fn x_len(&self) -> usize {
        [self.n, self.h, self.w, self.c].iter().map(|&e| e as usize).product()
    }
    /// Elements of y.
    pub fn y_len(&self) -> usize {
        [self.n, self.out_h, self.out_w, self.c].iter().map(|&e| e as usize).product()
    }

    /// Refuses empty extents, views of another length, and more than 2^31 elements.
    pub(crate) fn check(&self, x: usize, y: usize) -> Result<()> {
        let lens = [self.x_len(), self.y_len()];
        if lens.iter().any(|&len| len == 0 || len >= 1 << 31) {
            return Err(Error::Shape { op: OP, what: format!("unusable extents {self:?}") });
        }
        super::expect_len(OP, "x", x, lens[0])?;
        super::expect_len(OP, "y", y, lens[1])
    }
}

/// Bilinear interpolation of a device, forward only.
pub trait Bilinear: Memory {
    /// y [N, H', W', C] from x [N, H, W, C].
    ///
    /// # Errors
    /// [`crate::error::Error::Shape`] where a view does not fit.
    fn bilinear(&self, dims: &BilinearDims, x: Self::Slice<'_>, y: Self::SliceMut<'_>) -> Result<()>;
}
