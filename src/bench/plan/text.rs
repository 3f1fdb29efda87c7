//! A plan as tables and as JSON.

use serde_json::{Value, json};

use super::{Launch, MODEL, Plan};
use crate::bench::probe::Kind;
use crate::bench::table::{seconds, table};

/// Launches that differ in nothing, and how many there are.
struct Line<'a> {
    launch: &'a Launch,
    count: usize,
}

/// Sums over launches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sum {
    /// Launches.
    pub launches: usize,
    /// Multiply-adds times two.
    pub flops: u64,
    /// Bytes.
    pub bytes: u64,
    /// Seconds at best.
    pub floor: f64,
    /// Seconds by the model.
    pub predicted: f64,
}

impl Sum {
    fn add(&mut self, launch: &Launch) {
        self.launches += 1;
        self.flops += launch.flops;
        self.bytes += launch.bytes;
        self.floor += launch.floor;
        self.predicted += launch.predicted;
    }

    fn cells(&self) -> [String; 5] {
        [
            self.launches.to_string(),
            if self.flops == 0 { "-".into() } else { format!("{:.1}", self.flops as f64 / 1e9) },
            format!("{:.1}", self.bytes as f64 / 1e6),
            seconds(self.floor),
            seconds(self.predicted),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "launches": self.launches, "flops": self.flops, "bytes": self.bytes,
            "floor_seconds": self.floor, "predicted_seconds": self.predicted,
        })
    }
}

impl Plan {
    /// Over all launches.
    pub fn sum(&self) -> Sum {
        let mut sum = Sum::default();
        self.launches.iter().for_each(|launch| sum.add(launch));
        sum
    }

    /// By purpose, the longest first.
    pub fn parts(&self) -> Vec<(Kind, Sum)> {
        let mut parts: Vec<(Kind, Sum)> = Vec::new();
        for launch in &self.launches {
            let kind = launch.call.kind;
            let at = parts.iter().position(|part| part.0 == kind).unwrap_or_else(|| {
                parts.push((kind, Sum::default()));
                parts.len() - 1
            });
            parts[at].1.add(launch);
        }
        parts.sort_by(|a, b| b.1.predicted.total_cmp(&a.1.predicted).then(a.0.cmp(&b.0)));
        parts
    }

    /// Launches of the same kernel, operation and extents as one, those that take the longest in all first.
    fn lines(&self) -> Vec<Line<'_>> {
        let mut lines: Vec<Line<'_>> = Vec::new();
        for launch in &self.launches {
            let key = |l: &Launch| (l.kernel, l.blocks, l.call.operation, l.call.shape.clone(), l.call.options.clone());
            match lines.iter_mut().find(|line| key(line.launch) == key(launch)) {
                Some(line) => line.count += 1,
                None => lines.push(Line { launch, count: 1 }),
            }
        }
        let total = |line: &Line<'_>| line.launch.predicted * line.count as f64;
        lines.sort_by(|a, b| total(b).total_cmp(&total(a)));
        lines
    }

    /// For a terminal: what it stands on, a line for every kernel and extents where `every` is set, then purposes and the sum.
    pub fn text(&self, every: bool) -> String {
        let mut text = format!(
            "predicted for {} in {}: nothing here was measured\n{}\n",
            self.gpu.title,
            self.arithmetic,
            self.assumptions()
        );
        if every {
            text.push_str(&self.kernels_text());
            text.push('\n');
        }
        let mut rows: Vec<Vec<String>> = Vec::new();
        let mut row = |name: &str, sum: &Sum| rows.push([vec![name.to_string()], sum.cells().to_vec()].concat());
        self.parts().iter().for_each(|(kind, sum)| row(kind.name(), sum));
        row("all", &self.sum());
        text.push_str(&table(&["part", "launches", "GFLOP", "MB", "floor", "predicted"], &rows, 1));
        text
    }

    fn assumptions(&self) -> String {
        format!(
            "{} multiprocessors; mma.sync {:.0} TFLOP/s, of which {:.0} %; memory {:.2} TB/s, of which {:.0} %; {:.1} us a launch",
            self.gpu.multiprocessors,
            self.gpu.flops(self.arithmetic) / 1e12,
            100.0 * MODEL.compute,
            self.gpu.bandwidth / 1e12,
            100.0 * MODEL.memory,
            1e6 * (MODEL.ramp + MODEL.gap),
        )
    }

    fn kernels_text(&self) -> String {
        let number = |value: Option<u32>| value.map_or_else(|| "?".into(), |value| value.to_string());
        let cells = |line: &Line<'_>| {
            let l = line.launch;
            let per_warp = (l.flops > 0).then(|| l.flops as f64 / (l.blocks.max(1) * u64::from(l.threads / 32)) as f64);
            vec![
                l.kernel.to_string(),
                format!("{} {}", l.call.kind.name(), l.call.shape),
                line.count.to_string(),
                l.blocks.to_string(),
                l.threads.to_string(),
                number(l.registers),
                format!("{:.1}", f64::from(l.shared) / 1024.0),
                l.occupancy.map_or_else(|| "?".into(), |o| format!("{} {}", o.blocks, o.bound)),
                l.waves(self.gpu).map_or_else(|| "-".into(), |w| format!("{w:.2}")),
                per_warp.map_or_else(|| "-".into(), |flops| format!("{:.0}", flops / FLOPS_OF_MMA)),
                format!("{:.2}", l.bytes as f64 / 1e6),
                seconds(l.floor),
                seconds(l.predicted),
            ]
        };
        let rows: Vec<Vec<String>> = self.lines().iter().map(cells).collect();
        let names = [
            "kernel",
            "operation",
            "n",
            "blocks",
            "threads",
            "regs",
            "KiB",
            "blocks/SM",
            "waves",
            "mma/warp",
            "MB",
            "floor",
            "predicted",
        ];
        table(&names, &rows, 2)
    }

    /// As in result files.
    pub fn json(&self) -> Value {
        let lines = self.lines();
        let rows = lines.iter().map(|line| {
            let l = line.launch;
            json!({
                "kernel": l.kernel, "operation": l.call.operation, "part": l.call.kind.name(), "shape": l.call.shape,
                "options": l.call.options, "count": line.count, "blocks": l.blocks, "threads": l.threads,
                "registers": l.registers, "shared_bytes": l.shared, "blocks_per_multiprocessor": l.occupancy.map(|o| o.blocks),
                "bound": l.occupancy.map(|o| o.bound), "waves": l.waves(self.gpu), "flops": l.flops, "bytes": l.bytes,
                "floor_seconds": l.floor, "predicted_seconds": l.predicted, "measured": false,
            })
        });
        let parts = self.parts().into_iter().map(|(kind, sum)| {
            let mut part = sum.json();
            part["part"] = json!(kind.name());
            part
        });
        json!({
            "gpu": self.gpu.title, "precision": self.arithmetic.to_string(), "measured": false,
            "model": {
                "multiprocessors": self.gpu.multiprocessors, "flops": self.gpu.flops(self.arithmetic),
                "bytes_per_second": self.gpu.bandwidth, "compute_share": MODEL.compute, "memory_share": MODEL.memory,
                "ramp_seconds": MODEL.ramp, "gap_seconds": MODEL.gap,
            },
            "sum": self.sum().json(),
            "parts": parts.collect::<Vec<_>>(),
            "launches": rows.collect::<Vec<_>>(),
        })
    }
}

/// Of `mma.sync.m16n8k16`, multiply-adds times two.
const FLOPS_OF_MMA: f64 = (2 * 16 * 8 * 16) as f64;
