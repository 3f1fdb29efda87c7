//! In what state a machine was while something was measured: who else used its cores, and at what clock they ran.

use std::process::Command;
use std::time::Instant;

use serde_json::{Value, json};

/// The state when measuring began.
pub struct Watched {
    began: Instant,
    gpu: bool,
    before: State,
}

/// Readable facts of a moment; what a system does not tell is absent.
struct State {
    /// Ticks in which all cores worked, and those of this process.
    ticks: Option<(u64, u64)>,
    load: Option<f64>,
    mhz: Vec<f64>,
    gpu: Option<String>,
}

/// What is asked of the driver's tool.
const GPU_FACTS: &str =
    "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu,clocks_throttle_reasons.active";

impl State {
    fn now(gpu: bool) -> Self {
        let gpu = gpu.then(nvidia_smi).flatten();
        State { ticks: ticks(), load: load(), mhz: clocks(), gpu }
    }

    fn json(&self) -> Value {
        let extreme = |pick: fn(f64, f64) -> f64| self.mhz.iter().copied().reduce(pick);
        json!({
            "load": self.load, "mhz_min": extreme(f64::min), "mhz_max": extreme(f64::max), "gpu": self.gpu,
        })
    }
}

impl Watched {
    /// Begins; `gpu`: asks nvidia-smi too.
    pub fn begin(gpu: bool) -> Self {
        Watched { began: Instant::now(), gpu, before: State::now(gpu) }
    }

    /// Share of all cores that other processes used since it began, from 0 to 1; where the system tells.
    pub fn others(&self) -> Option<f64> {
        let (busy, own) = ticks()?;
        let (busy_before, own_before) = self.before.ticks?;
        let others = (busy - busy_before.min(busy)).saturating_sub(own - own_before.min(own));
        let all = self.began.elapsed().as_secs_f64() * TICKS_A_SECOND * machine_cores() as f64;
        (all > 0.0).then(|| (others as f64 / all).min(1.0))
    }

    /// Processor, cores, states before and after, the share of others.
    pub fn json(&self) -> Value {
        json!({
            "cpu": cpu_name(), "cores": machine_cores(), "seconds": self.began.elapsed().as_secs_f64(),
            "before": self.before.json(), "after": State::now(self.gpu).json(), "others_share_of_cores": self.others(),
            "gpu_facts": self.gpu.then_some(GPU_FACTS),
        })
    }

    /// A line for a terminal.
    pub fn line(&self) -> String {
        let mhz = clocks();
        let clock = match (mhz.iter().copied().reduce(f64::min), mhz.iter().copied().reduce(f64::max)) {
            (Some(least), Some(most)) if most - least > 50.0 => format!(", {least:.0} to {most:.0} MHz"),
            (_, Some(most)) => format!(", {most:.0} MHz"),
            _ => String::new(),
        };
        let others = match self.others() {
            Some(share) if share > 0.05 => {
                format!("; other processes used {:.0} % of the cores: times are disturbed", 100.0 * share)
            }
            Some(share) => format!("; other processes used {:.0} % of the cores", 100.0 * share),
            None => String::new(),
        };
        format!("machine: {}, {} cores{clock}{others}", cpu_name().unwrap_or("cpu unknown".into()), machine_cores())
    }
}

/// Linux counts in hundredths of a second (USER_HZ is 100 on every architecture that this runs on).
const TICKS_A_SECOND: f64 = 100.0;

/// Ticks of work of all processes, and of this one with its threads.
fn ticks() -> Option<(u64, u64)> {
    let all = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> = all.lines().next()?.split_whitespace().skip(1).filter_map(|v| v.parse().ok()).collect();
    // user, nice, system, (idle, iowait,) irq, softirq, steal: what a hypervisor gives to others is not here to use either.
    let busy = [0, 1, 2, 5, 6, 7].iter().filter_map(|&i| fields.get(i)).sum();
    let own = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in brackets, may hold spaces.
    let fields: Vec<&str> = own.rsplit_once(')')?.1.split_whitespace().collect();
    let own = [11, 12].iter().filter_map(|&i| fields.get(i)?.parse::<u64>().ok()).sum();
    Some((busy, own))
}

/// Cores of the machine, whether or not this process may use them.
fn machine_cores() -> usize {
    let of_stat = std::fs::read_to_string("/proc/stat").map_or(0, |text| {
        text.lines()
            .filter(|l| l.strip_prefix("cpu").is_some_and(|l| l.starts_with(|c: char| c.is_ascii_digit())))
            .count()
    });
    if of_stat > 0 { of_stat } else { std::thread::available_parallelism().map_or(1, usize::from) }
}

/// Mean number of runnable processes over the last minute.
fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split_whitespace().next()?.parse().ok()
}

/// Clocks of the cores in MHz: of cpufreq where it is there, else of /proc/cpuinfo.
fn clocks() -> Vec<f64> {
    let of_core = |i: usize| {
        let path = format!("/sys/devices/system/cpu/cpu{i}/cpufreq/scaling_cur_freq");
        Some(std::fs::read_to_string(path).ok()?.trim().parse::<f64>().ok()? / 1000.0)
    };
    let of_cores: Vec<f64> = (0..machine_cores()).filter_map(of_core).collect();
    if of_cores.is_empty() { cpuinfo("cpu MHz").iter().filter_map(|v| v.parse().ok()).collect() } else { of_cores }
}

fn cpu_name() -> Option<String> {
    cpuinfo("model name").into_iter().next()
}

fn cpuinfo(key: &str) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |line: &str| line.strip_prefix(key)?.split_once(':').map(|(_, value)| value.trim().to_string());
    text.lines().filter_map(value).collect()
}

fn nvidia_smi() -> Option<String> {
    let arguments = [format!("--query-gpu={GPU_FACTS}"), "--format=csv,noheader".into()];
    let done = Command::new("nvidia-smi").args(arguments).output().ok()?;
    done.status.success().then(|| String::from_utf8_lossy(&done.stdout).trim().to_string())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::Watched;

    #[test]
    fn linux_tells() {
        let watched = Watched::begin(false);
        let json = watched.json();
        assert!(json["cores"].as_u64().unwrap() > 0 && json["before"]["load"].is_number(), "{json}");
        assert!(watched.others().is_none_or(|share| (0.0..=1.0).contains(&share)));
        assert!(watched.line().starts_with("machine: "));
    }
}
