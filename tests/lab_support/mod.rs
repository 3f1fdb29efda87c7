//! Folders as runs leave them, written without training, and the built program.
#![allow(dead_code)] // each test file uses a part

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ddim_engine::config::Config;
use serde_json::json;

/// What the program said, and its exit code.
#[derive(Debug)]
pub struct Said {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Ended with `code`, with all `needles` in an `error:`, and without a panic.
    #[track_caller]
    pub fn fails(&self, code: i32, needles: &[&str]) {
        assert_eq!(self.code, code, "{self:#?}");
        assert!(self.err.starts_with("error: ") && !self.err.contains("panicked"), "{}", self.err);
        for needle in needles {
            assert!(self.err.contains(needle), "{needle:?} is not in: {}", self.err);
        }
    }
}

/// Runs the program.
pub fn engine(args: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ddim-engine"));
    command.args(args).env_remove("DDIM_ISA").env_remove("DDIM_DATA_DIR").stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

/// A folder of a run.
pub struct Fake {
    pub root: PathBuf,
}

impl Fake {
    /// With the settings of the preset `quick`.
    pub fn new(root: &Path) -> Self {
        Self::with(root, &Config::quick_preset())
    }

    pub fn with(root: &Path, config: &Config) -> Self {
        fs::create_dir_all(root).unwrap();
        fs::write(root.join("config.toml"), config.to_toml()).unwrap();
        Fake { root: root.to_path_buf() }
    }

    pub fn text(&self) -> &str {
        self.root.to_str().unwrap()
    }

    /// A record every 10 steps, whose noise loss is 10 over the step, and a validation after every `epoch` steps.
    pub fn metrics(self, steps: u64, epoch: u64) -> Self {
        let mut text = String::new();
        let mut line = |step: u64, split: &str| {
            let loss = 10.0 / step as f64;
            let record = json!({
                "step": step, "epoch": (step - 1) / epoch + 1, "split": split, "loss": loss, "noise_loss": loss, "image_loss": 2.0 * loss,
                "lr": 0.002, "images_per_second": 100.0, "seconds": step as f64 / 8.0,
            });
            text.push_str(&format!("{record}\n"));
        };
        for step in (10..=steps).step_by(10) {
            line(step, "train");
            if step % epoch == 0 {
                line(step, "valid");
            }
        }
        fs::write(self.root.join("metrics.jsonl"), text).unwrap();
        self
    }

    /// Grids of noise after the first `epochs` epochs; many are larger, so that they do not all go into a page.
    pub fn samples(self, epochs: u32) -> Self {
        let folder = self.root.join("samples");
        fs::create_dir_all(&folder).unwrap();
        let size = if epochs > 10 { 128 } else { 12 };
        for epoch in 1..=epochs {
            let mut word = epoch.wrapping_mul(2_654_435_761);
            let picture = image::RgbImage::from_fn(size, size, |_, _| {
                word = word.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                image::Rgb([(word >> 24) as u8, (word >> 16) as u8, (word >> 8) as u8])
            });
            picture.save(folder.join(format!("epoch-{epoch:04}.png"))).unwrap();
        }
        self
    }

    pub fn finished(self) -> Self {
        let summary = json!({
            "run_dir": self.root, "preset": "quick", "device": "cpu (AVX512, 2 threads): no CUDA driver", "parameters": 1_258_115,
            "steps": 60, "epochs": 3, "seconds": 12.5, "images_per_second": 264.0, "valid": [0.1, 0.1, 0.2],
            "samples": null, "checkpoint": "",
        });
        fs::write(self.root.join("summary.json"), summary.to_string()).unwrap();
        self
    }

    pub fn evaluated(self) -> Self {
        let level = |low: f64| json!({"time": [low, low + 0.5], "noise_rate": [low, low + 0.4], "count": 50, "noise_loss": 0.4 - low / 2.0, "image_loss": 0.1 + low});
        let evaluation = json!({
            "step": 60, "weights": "moving average", "data": "procedural", "split": "valid", "pictures": 100, "loss": 0.2, "noise_loss": 0.2,
            "image_loss": 0.3, "levels": [level(0.0), level(0.5)], "device": "cpu", "seconds": 1.0,
            "quality": {"protocol": "engine", "inception": "inception.safetensors", "pictures": [819, 1000], "sampler": "ddim", "steps": 20,
                "network_calls": 19, "kid": 0.1234, "kid_std": 0.004, "kid_subsets": [10, 100], "fid": 81.25, "precision": 0.5, "recall": 0.25},
        });
        fs::write(self.root.join("evaluation.json"), evaluation.to_string()).unwrap();
        self
    }
}
