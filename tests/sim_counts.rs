//! The counters of the simulator's checker against kernels whose accesses are known (`kernels/sim/tests/counts.cu`), in every order of threads.

mod simulator_support;

use ddim_engine::device::sim::{Counts, Sim};
use simulator_support::{Bench, Case, ORDERS};

/// The counts of a launch of `warps` warps in blocks of `block` threads, which must not depend on the order of threads.
fn count(case: &Case) -> Option<Counts> {
    let bench = Bench::checked()?;
    let mut first = None;
    for order in ORDERS {
        bench.order(order);
        let counts = bench.count(case);
        assert_eq!(*first.get_or_insert(counts), counts, "{} in order {order}", case.kernel);
    }
    first
}

/// A launch with `words` words in each buffer.
fn case(kernel: &'static str, grid: u32, block: u32, words: usize) -> Case {
    let [input, output, extra] = [1, 0, 0].map(|word| vec![word; words]);
    Case { kernel, grid, block, shared: 0, n: 0, option: 0, input, output, extra }
}

#[test]
fn sixteen_bytes_a_lane() {
    // Two blocks of two warps: each warp reads 512 bytes, which are 16 sectors, and writes as many.
    let of_16 = Counts {
        read_sectors: 64,
        written_sectors: 64,
        accesses: 8,
        sectors: 128,
        fewest_sectors: 128,
        bytes: 4096,
        bytes_of_16: 4096,
        ..Counts::default()
    };
    for option in [0, 1] {
        let Some(counts) = count(&Case { option, ..case("sim_test_count_copy", 2, 64, 512) }) else { return };
        assert_eq!(counts, of_16, "option {option}");
    }
    // A word at a time in a loop: four times as many accesses, each of which touches all 16 sectors for an eighth of their bytes.
    let counts = count(&Case { option: 2, n: 4, ..case("sim_test_count_copy", 2, 64, 512) }).unwrap();
    assert_eq!(
        counts,
        Counts { accesses: 32, sectors: 512, fewest_sectors: 128, bytes_of_16: 0, ..of_16 },
        "components of an array are not a vector"
    );
    assert_eq!((counts.distinct_bytes(), counts.wide_share()), (4096, 0.0));
}

#[test]
fn words_with_gaps() {
    // (words between lanes, words from the begin, sectors of the read)
    for (stride, from, sectors) in [(1, 0, 4), (2, 0, 8), (8, 0, 32), (32, 0, 32), (1, 1, 5), (0, 3, 1)] {
        let Some(counts) = count(&Case { option: stride, n: from, ..case("sim_test_count_stride", 1, 32, 1024) })
        else {
            return;
        };
        let fewest = if stride == 0 { 1 } else { 4 };
        let want = Counts {
            read_sectors: sectors,
            written_sectors: 4,
            accesses: 2,
            sectors: sectors + 4,
            fewest_sectors: fewest + 4,
            bytes: 256,
            ..Counts::default()
        };
        assert_eq!(counts, want, "stride {stride} from {from}");
    }
}

#[test]
fn columns_of_a_tile() {
    // Words between rows, wavefronts of a column: how many of 32 rows share a bank.
    for (pitch, wavefronts) in [(32, 32), (33, 1), (34, 2), (36, 4), (40, 8), (48, 16)] {
        let shared = 32 * pitch * 4;
        let case = Case { option: pitch, shared, ..case("sim_test_count_transpose", 1, 32, 1024) };
        let Some(counts) = count(&case) else { return };
        let want = Counts {
            read_sectors: 128,
            written_sectors: 128,
            accesses: 64,
            sectors: 256,
            fewest_sectors: 256,
            bytes: 8192,
            shared_accesses: 64,
            wavefronts: 32 + 32 * wavefronts,
            fewest_wavefronts: 64,
            ..Counts::default()
        };
        assert_eq!(counts, want, "pitch {pitch}");
        assert_eq!(counts.extra_wavefronts(), (wavefronts - 1) as f64 / 2.0);
    }
}

#[test]
fn lines_that_cost_are_named() {
    let Some(bench) = Bench::checked() else { return };
    bench.costly_lines();
    bench.count(&Case { option: 32, shared: 4096, ..case("sim_test_count_transpose", 1, 32, 1024) });
    bench.count(&Case { option: 2, ..case("sim_test_count_stride", 1, 32, 1024) });
    let source = include_str!("../kernels/sim/tests/counts.cu");
    let line = |text: &str| 1 + source.lines().position(|line| line.contains(text)).unwrap();
    let want = format!(
        "sim_test_count_transpose counts.cu:{} shared read 32 1024 32\nsim_test_count_stride counts.cu:{} global read 1 8 4\n",
        line("tile[lane * pitch + row]"),
        line("threadIdx.x * a.option]")
    );
    assert_eq!(bench.costly_lines(), want);
    assert_eq!(bench.costly_lines(), "");
}

#[test]
fn vectors_in_shared_memory() {
    // (bytes of a vector, bytes between lanes, wavefronts, the fewest possible)
    for (size, pitch, wavefronts, fewest) in [
        (2, 2, 1, 1), // two lanes share a word
        (2, 128, 32, 1),
        (4, 4, 1, 1),
        (4, 8, 2, 1),
        (8, 8, 2, 2), // 16 lanes at a time
        (8, 16, 4, 2),
        (16, 16, 4, 4), // 8 lanes at a time
        (16, 32, 8, 4),
        (16, 48, 4, 4), // an odd number of vectors: no conflict
        (16, 128, 32, 4),
        (32, 32, 16, 8), // two vectors: lanes 4 apart share their banks
        (32, 48, 8, 8),
    ] {
        let case = Case { option: size, n: pitch, shared: 32 * pitch, ..case("sim_test_count_vectors", 1, 32, 32) };
        let Some(counts) = count(&case) else { return };
        let shared_accesses = if size == 32 { 2 } else { 1 };
        let want = Counts { shared_accesses, wavefronts, fewest_wavefronts: fewest, ..Counts::default() };
        assert_eq!(counts, want, "{size} bytes, {pitch} apart");
    }
}

#[test]
fn one_word_for_all() {
    let Some(counts) = count(&case("sim_test_count_broadcast", 1, 32, 32)) else { return };
    let want = Counts {
        read_sectors: 1,
        written_sectors: 4,
        accesses: 2,
        sectors: 5,
        fewest_sectors: 5,
        bytes: 256,
        shared_accesses: 2,
        wavefronts: 2,
        fewest_wavefronts: 2,
        ..Counts::default()
    };
    assert_eq!(counts, want);
}

#[test]
fn asynchronous_copies_and_matrices() {
    // Rows 64 bytes apart: those of even number share their banks, so a matrix of 8 rows takes 4 wavefronts; so do the 8 lanes that
    // copy to them at once.
    for (pitch, wavefronts) in [(16, 1), (64, 4), (80, 1), (144, 1), (128, 8)] {
        let case = Case { option: pitch, shared: 32 * pitch, ..case("sim_test_count_matrices", 1, 32, 128) };
        let Some(counts) = count(&case) else { return };
        let want = Counts {
            read_sectors: 16,
            written_sectors: 16,
            accesses: 2,
            sectors: 32,
            fewest_sectors: 32,
            bytes: 1024,
            bytes_of_16: 1024,
            shared_accesses: 2,
            wavefronts: 8 * wavefronts,
            fewest_wavefronts: 8,
            ..Counts::default()
        };
        assert_eq!(counts, want, "rows {pitch} bytes apart");
    }
}

#[test]
fn lanes_that_sit_out() {
    // The first round is one of 16 lanes: 2 sectors; the second one of 32: 4.
    let rounds = |option| count(&Case { option, n: 2, ..case("sim_test_count_rounds", 1, 32, 64) });
    let Some(counts) = rounds(1) else { return };
    let want = Counts {
        read_sectors: 6,
        written_sectors: 4,
        accesses: 3,
        sectors: 10,
        fewest_sectors: 10,
        bytes: 320,
        ..Counts::default()
    };
    assert_eq!(counts, want);
    // Where they do not meet, the second round of the upper half is taken for the first of the lower: the limit that count.cpp names.
    assert_eq!(rounds(0).unwrap(), want);
}

#[test]
fn memory_that_is_read_again() {
    for option in [0, 1] {
        let Some(counts) = count(&Case { option, ..case("sim_test_count_again", 1, 64, 128) }) else { return };
        // Eight sectors are updated; eight are written, and, with option 1, read by other threads afterwards, which needs no main memory;
        // then the first are updated again. The counter is one sector.
        let again = if option == 1 { 3 * 2 } else { 0 };
        let want = Counts {
            read_sectors: 8 + 1,
            written_sectors: 8 + 8 + 1,
            accesses: 2 * 3 + again + 2,
            sectors: 4 * (2 * 3 + again) + 2,
            fewest_sectors: 4 * (2 * 3 + again) + 2,
            bytes: 128 * (2 * 3 + again) + 64 * 4,
            atomics: 64,
            ..Counts::default()
        };
        assert_eq!(counts, want, "option {option}");
    }
}

#[test]
fn only_the_checker_counts() {
    let Ok(sim) = Sim::new() else { return };
    assert!(sim.count_launches().unwrap_err().to_string().contains("no option \"count\""));
}
