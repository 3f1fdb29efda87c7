//! What ptxas says of each kernel (`-Xptxas -v`), read from the logs that lie beside the images.

use std::fs;
use std::path::Path;

/// One kernel on one architecture.
#[derive(Debug, Default)]
pub struct Report {
    pub kernel: String,
    pub arch: String,
    pub registers: u32,
    /// Bytes of static shared memory.
    pub shared: u32,
}

/// All reports of the logs of `modules`; a log that is missing has none.
pub fn read<'a>(folder: &Path, modules: impl Iterator<Item = &'a str>) -> Vec<Report> {
    let mut found = Vec::new();
    for module in modules {
        let log = fs::read_to_string(folder.join(format!("{module}.ptxas.log"))).unwrap_or_default();
        for line in log.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let mut quoted = rest.split('\'');
                let (kernel, arch) = (quoted.next().unwrap_or_default(), quoted.nth(1).unwrap_or_default());
                found.push(Report { kernel: kernel.into(), arch: arch.into(), ..Report::default() });
            } else if let (Some(report), Some((_, used))) = (found.last_mut(), line.split_once("Used ")) {
                report.registers = before(used, " registers");
                report.shared = before(used, " bytes smem");
            }
        }
    }
    found
}

/// The number in front of `unit`; 0 where it is not named.
fn before(text: &str, unit: &str) -> u32 {
    let Some((front, _)) = text.split_once(unit) else { return 0 };
    front.rsplit([' ', ',']).next().and_then(|number| number.parse().ok()).unwrap_or(0)
}
