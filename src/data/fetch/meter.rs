//! Bytes in words, and told as they come.

use std::cell::Cell;

use crate::data::Progress;

/// Tells of bytes in units that read well.
pub(super) struct Meter<'a> {
    progress: &'a dyn Progress,
    unit: u64,
    done: Cell<u64>,
}

impl<'a> Meter<'a> {
    /// Begins with `have` of `total` bytes.
    pub fn start(progress: &'a dyn Progress, what: &str, total: u64, have: u64) -> Self {
        let (unit, name) = if total < 10_000_000 { (1000, "kB") } else { (1_000_000, "MB") };
        progress.start_units(what, Some(total.div_ceil(unit)), name);
        let meter = Meter { progress, unit, done: Cell::new(0) };
        meter.advance(have);
        meter
    }

    /// So many more bytes.
    pub fn advance(&self, bytes: u64) {
        let before = self.done.get();
        self.done.set(before + bytes);
        let units = (before + bytes) / self.unit - before / self.unit;
        if units > 0 {
            self.progress.advance(units);
        }
    }
}

impl Drop for Meter<'_> {
    fn drop(&mut self) {
        self.progress.finish();
    }
}

/// 344862509 as "345 MB".
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} bytes"),
        1000..1_000_000 => format!("{:.0} kB", bytes as f64 / 1e3),
        1_000_000..10_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn sizes_read_well() {
        let sizes = [502, 14_989, 1_500_000, 344_862_509, 1_200_000_000].map(super::size);
        assert_eq!(sizes, ["502 bytes", "15 kB", "1.5 MB", "345 MB", "1.2 GB"]);
    }
}
