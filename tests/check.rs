//! Replays the reference files of `fixtures/reference` (PyTorch's numbers) on the CPU with each instruction set.

use std::path::PathBuf;

use ddim_engine::check::{Tolerances, check};
use ddim_engine::device::cpu::{Cpu, Isa};
use ddim_engine::device::gpu::Arithmetic;

fn fixtures() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    assert!(files.len() >= 8, "the fixtures are part of the repository");
    files
}

#[test]
fn every_reference_file_passes_with_every_instruction_set() {
    for isa in Isa::ALL {
        if !isa.available() {
            println!("skipped: this CPU has no {isa}");
            continue;
        }
        for threads in [1, 2] {
            let cpu = Cpu::with_isa(threads, isa).unwrap();
            cpu.poison_new_buffers();
            for file in fixtures() {
                let report = check(&cpu, &file, &Tolerances::of(Arithmetic::Fp32)).unwrap();
                let name = file.file_name().unwrap().to_string_lossy().into_owned();
                for row in &report.rows {
                    println!(
                        "{isa} {name}: {:60} {:.1e} {:.1e} <= {:.0e}",
                        row.name, row.absolute, row.relative, row.tolerance
                    );
                }
                assert!(report.passed(), "{name} on {isa}: {:#?}", report.rows);
            }
        }
    }
}
