//! Copies of the convolution kernel with one fault each, for a test that the simulator's checker finds every one.

use std::fs;
use std::path::Path;

use crate::sim::KernelFile;
use crate::write_if_changed;

/// One changed place.
struct Fault {
    name: &'static str,
    file: &'static str,
    text: &'static str,
    becomes: &'static str,
}

const FILE: &str = "conv.cu";
/// The instance that the test runs; the others are left out.
const KERNEL: &str = "conv_fwd_m64n32_f32";
const FAULTS: [Fault; 6] = [
    Fault {
        name: "no_barrier",
        file: "conv.cu",
        text: "      __syncthreads();\n      if (row + 1 < rows",
        becomes: "\n      if (row + 1 < rows",
    },
    Fault {
        name: "no_barrier_before_results",
        file: "conv.cu",
        text: "__syncthreads();  // the results take the place of the pipeline",
        becomes: "",
    },
    Fault { name: "no_wait", file: "conv.cu", text: "cp_async_wait<0>();", becomes: "" },
    Fault {
        name: "no_guard_below",
        file: "conv_tile.cuh",
        text: "y >= 0 && y < (int)a.height && ",
        becomes: "y >= 0 && ",
    },
    Fault {
        name: "no_guard_of_images",
        file: "conv_tile.cuh",
        text: "const bool inside = image < (int)a.n && ",
        becomes: "const bool inside = ",
    },
    Fault {
        name: "no_guard_of_output",
        file: "conv_epilogue.cuh",
        text: "    if (pixel < 0) continue;\n    float* result = results + p * RESULT_PITCH<N> + group * V;",
        becomes: "\n    float* result = results + p * RESULT_PITCH<N> + group * V;",
    },
];

/// Writes the copies below `out`. Their kernels are called `planted_<fault>_<kernel>`.
pub fn write(kernels: &Path, out: &Path) -> Result<Vec<KernelFile>, String> {
    let mut files = Vec::new();
    for fault in &FAULTS {
        let folder = out.join(fault.name);
        fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let entries = fs::read_dir(kernels).map_err(|e| format!("{}: {e}", kernels.display()))?;
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            if name != FILE && !name.ends_with(".cuh") {
                continue;
            }
            let mut text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            if name == fault.file {
                if text.matches(fault.text).count() != 1 {
                    let (name, file, text) = (fault.name, fault.file, fault.text);
                    return Err(format!("build/planted.rs: {name}: {file} does not contain {text:?} once"));
                }
                text = text.replace(fault.text, fault.becomes);
            }
            if name == FILE {
                text = only_one_kernel(&text);
            }
            write_if_changed(&folder.join(name), &text)?;
        }
        let note = format!("// {:?} in {} is {:?}\n", fault.text, fault.file, fault.becomes);
        let prefix = format!("planted_{}_", fault.name);
        files.push(KernelFile { path: folder.join(FILE), names: vec![KERNEL.into()], prefix, note });
    }
    Ok(files)
}

/// Every line keeps its number.
fn only_one_kernel(text: &str) -> String {
    let keep = |line: &&str| !line.starts_with("extern \"C\" __global__") || line.contains(KERNEL);
    text.lines().map(|line| Some(line).filter(keep).unwrap_or_default().to_string() + "\n").collect()
}
