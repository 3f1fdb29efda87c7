//! The simulator itself: its wrappers and intrinsics against plain computations, correct kernels that its checker must accept, and
//! kernels with a fault, each of which must be reported with file and line, in every order of threads.

mod simulator_support;

use half::bf16;
use simulator_support::{Bench, Case, ORDERS, bits, everywhere, floats};

/// Whole numbers that bfloat16 and tf32 hold exactly.
fn whole(i: usize) -> f32 {
    (i * 7 % 23) as f32 - 11.0
}

/// Element (row, column) of A, B and C that word `i` of a lane's fragments holds, as PTX has it for m16n8k16 (16 bits) and m16n8k8.
struct Fragments {
    /// Elements of a word.
    pack: usize,
}

impl Fragments {
    fn a(&self, lane: usize, word: usize) -> (usize, usize) {
        (lane / 4 + word % 2 * 8, (lane % 4 + word / 2 * 4) * self.pack)
    }
    fn b(&self, lane: usize, word: usize) -> (usize, usize) {
        ((lane % 4 + word * 4) * self.pack, lane / 4)
    }
    fn c(lane: usize, word: usize) -> (usize, usize) {
        (lane / 4 + word / 2 * 8, lane % 4 * 2 + word % 2)
    }
    fn depth(&self) -> usize {
        8 * self.pack
    }
}

/// D = A B + C of small whole numbers, which every order of addition gives exactly.
fn multiply(kernel: &'static str, pack: usize, encode: impl Fn(&[f32]) -> u32) {
    let fragments = Fragments { pack };
    let depth = fragments.depth();
    let a: Vec<f32> = (0..16 * depth).map(whole).collect();
    let b: Vec<f32> = (0..depth * 8).map(|i| whole(i * 5 + 3)).collect();
    let c: Vec<f32> = (0..16 * 8).map(|i| whole(i + 1) * 4.0).collect();
    let mut input = Vec::new();
    for lane in 0..32 {
        for word in 0..4 {
            let (row, column) = fragments.a(lane, word);
            input.push(encode(&a[row * depth + column..][..pack]));
        }
        for word in 0..2 {
            let (row, column) = fragments.b(lane, word);
            let values: Vec<f32> = (0..pack).map(|i| b[(row + i) * 8 + column]).collect();
            input.push(encode(&values));
        }
        input.extend((0..4).map(|word| {
            let (row, column) = Fragments::c(lane, word);
            c[row * 8 + column].to_bits()
        }));
    }
    let case = Case { kernel, grid: 1, block: 32, input, output: vec![0; 128], ..Case::default() };
    let Some((got, _)) = everywhere(&case) else { return };
    for (i, got) in floats(&got).into_iter().enumerate() {
        let (row, column) = Fragments::c(i / 4, i % 4);
        let products = (0..depth).map(|k| a[row * depth + k] * b[k * 8 + column]);
        assert_eq!(got, products.sum::<f32>() + c[row * 8 + column], "{kernel} ({row}, {column})");
    }
}

#[test]
fn matrix_products() {
    let pair = |v: &[f32]| u32::from(bf16::from_f32(v[0]).to_bits()) | u32::from(bf16::from_f32(v[1]).to_bits()) << 16;
    multiply("sim_test_mma_bf16", 2, pair);
    multiply("sim_test_mma_tf32", 1, |v| v[0].to_bits());
    // The low 13 bits do not count, whatever they are.
    multiply("sim_test_mma_tf32", 1, |v| v[0].to_bits() | 0x1fff);
    multiply("sim_test_mma_tf32", 1, |v| v[0].to_bits() | 0x0aaa);
}

#[test]
fn matrices_from_shared_memory() {
    for option in 0..4 {
        let (matrices, transposed) = (if option < 2 { 4 } else { 2 }, option % 2 == 1);
        let case = Case {
            kernel: "sim_test_ldmatrix",
            grid: 1,
            block: 32,
            shared: 512,
            option,
            output: vec![9; 128],
            ..Case::default()
        };
        let Some((got, _)) = everywhere(&case) else { return };
        for (i, got) in got.into_iter().enumerate() {
            let (lane, matrix) = (i as u32 / 4, i as u32 % 4);
            // Two neighbours of row lane / 4; in the transpose, of column lane / 4.
            let element = |e: u32| {
                let (row, column) = (lane / 4, lane % 4 * 2 + e);
                matrix * 64 + if transposed { column * 8 + row } else { row * 8 + column }
            };
            let want = if matrix < matrices { element(0) | element(1) << 16 } else { 0 };
            assert_eq!(got, want, "option {option}, lane {lane}, matrix {matrix}");
        }
    }
}

#[test]
fn asynchronous_copies() {
    let Some(bench) = Bench::fast() else { return };
    for (option, shared) in [(16, 512), (4, 128)] {
        let each = option as usize / 4;
        let input: Vec<u32> = (0..32 * each as u32).map(|i| i + 100).collect();
        let output = vec![0; 32 * (1 + each)];
        let case = Case {
            kernel: "sim_test_cp_async",
            grid: 1,
            block: 32,
            shared,
            n: 20,
            option,
            input,
            output,
            ..Case::default()
        };
        for order in ORDERS {
            bench.order(order);
            let (got, _) = bench.run(&case).unwrap();
            for (thread, got) in got.chunks(1 + each).enumerate() {
                assert_eq!(got[0], u32::MAX, "before the wait neither what was there nor what arrives may be read");
                let copied: Vec<u32> = case.input[thread * each..][..each].to_vec();
                assert_eq!(got[1..], if thread < 20 { copied } else { vec![0; each] }, "thread {thread}");
            }
        }
    }
    let case = Case { kernel: "sim_test_cp_async_groups", grid: 1, block: 1, shared: 16, ..Case::default() };
    let case = Case { input: vec![5, 6], output: vec![0; 3], ..case };
    assert_eq!(bench.run(&case).unwrap().0, [5, u32::MAX, 6]);
}

#[test]
fn shuffles() {
    for width in [2, 4, 8, 16, 32] {
        for distance in [0, 1, 2, 3, 5, 8, 16, 31] {
            let case = Case {
                kernel: "sim_test_shuffle",
                grid: 1,
                block: 64,
                n: distance,
                option: width,
                output: vec![0; 256],
                ..Case::default()
            };
            let Some((got, _)) = everywhere(&case) else { return };
            for (thread, got) in got.chunks(4).enumerate() {
                let lane = thread as u32 % 32;
                let (first, place) = (lane - lane % width, lane % width);
                let index = first + distance % width;
                let up = if place >= distance { lane - distance } else { lane };
                let down = if place + distance < width { lane + distance } else { lane };
                // A lane of an earlier group may be read, one of a later group may not.
                let xor = if (lane ^ distance) < first + width { lane ^ distance } else { lane };
                let want = [index, up, down, xor].map(|source| source * source);
                assert_eq!(got, want, "width {width}, distance {distance}, lane {lane}");
            }
        }
    }
}

#[test]
fn votes() {
    for mask in [0xffff_ffff_u32, 0x0000_ffff, 0x8421_1248, 1] {
        for votes in [0_u32, 0xffff_ffff, 0x0000_ffff, 0x8000_0000, 0x1248_8421] {
            let case = Case { kernel: "sim_test_vote", grid: 1, block: 32, n: mask, option: votes, ..Case::default() };
            let Some((got, _)) = everywhere(&Case { output: vec![0; 96], ..case }) else { return };
            let want = [votes & mask, u32::from(votes & mask != 0), u32::from(votes & mask == mask)];
            for (lane, got) in got.chunks(3).enumerate().filter(|(lane, _)| mask >> lane & 1 == 1) {
                assert_eq!(got, want, "mask {mask:x}, votes {votes:x}, lane {lane}");
            }
        }
    }
}

#[test]
fn barriers_that_count() {
    for (block, yes) in [(128, 0), (128, 1), (128, 77), (128, 128), (32, 32), (96, 33)] {
        let output = vec![0; block as usize * 4];
        let case = Case { kernel: "sim_test_barriers", grid: 2, block, n: yes, output, ..Case::default() };
        // Both blocks write the same: one at a time, for the checker rightly objects.
        let Some((got, _)) = everywhere(&Case { grid: 1, ..case }) else { return };
        for (thread, got) in got.chunks(4).enumerate() {
            assert_eq!(got[..3], [yes, u32::from(yes == block), u32::from(yes > 0)], "{yes} of {block}");
            assert_eq!(got[3], thread as u32 ^ 31);
        }
    }
}

#[test]
fn atomic_operations() {
    let threads = 5 * 64_u32;
    let output = vec![1, 0, 0, u32::MAX, 0, 0, 0, 1];
    let case = Case { kernel: "sim_test_atomics", grid: 5, block: 64, n: 6, output, ..Case::default() };
    let Some((got, _)) = everywhere(&case) else { return };
    let sum = 1 + threads * (threads - 1) / 2;
    let largest = (0..threads).map(|i| i ^ 5).max().unwrap();
    let product = (0..threads).fold(1_u32, |p, _| p.wrapping_mul(3));
    assert_eq!(got, [sum, threads.wrapping_neg(), largest, 0, u32::MAX, threads % 7, 77, product]);
}

#[test]
fn conversions_to_bfloat16() {
    let values = [
        0.0,
        -0.0,
        1.0,
        -2.5,
        f32::MAX,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::from_bits(0x3f80_8000), // between two: the even one, below
        f32::from_bits(0x3f81_8000), // above
        f32::from_bits(0x3f80_8001),
        f32::from_bits(0x3f80_7fff),
        f32::from_bits(0x7f7f_8000), // rounds to infinity
        f32::NAN,
        f32::from_bits(0x7f80_0001), // not a number by its last bit only
        f32::from_bits(0xffff_ffff),
    ];
    let n = values.len();
    let case =
        Case { kernel: "sim_test_bf16", grid: 1, block: 32, n: n as u32, input: bits(&values), ..Case::default() };
    let Some((got, back)) = everywhere(&Case { output: vec![0; n], extra: vec![0; n], ..case }) else { return };
    for ((value, got), back) in values.iter().zip(got).zip(floats(&back)) {
        let (scalar, paired) = (bf16::from_bits(got as u16), bf16::from_bits((got >> 16) as u16));
        if value.is_nan() {
            assert!(scalar.is_nan() && paired.is_nan() && back.is_nan(), "{:x}", value.to_bits());
            continue;
        }
        let want = bf16::from_f32(*value);
        assert_eq!([scalar.to_bits(), paired.to_bits()], [want.to_bits(); 2], "{value:e}");
        assert_eq!(back.to_bits(), want.to_f32().to_bits(), "{value:e}");
    }
}

#[test]
fn arithmetic() {
    // A product whose rounding is larger than the sum: contracted into one operation it gives another result.
    let (x, y) = (1.0_f32 + f32::EPSILON, 1.0_f32 - f32::EPSILON);
    let triples: Vec<[u32; 3]> = (0..32)
        .map(|i| match i {
            0 => [x.to_bits(), y.to_bits(), (-1.0_f32).to_bits()],
            1 => [u32::MAX, u32::MAX, 0],
            2 => [0x8000_0000, 2, 0],
            _ => [i, 17, 99].map(|k: u32| (1.0 + (k * (i + 3) % 977) as f32 / 977.0).to_bits()),
        })
        .collect();
    let input = triples.concat();
    let case =
        Case { kernel: "sim_test_arithmetic", grid: 1, block: 32, input, output: vec![0; 96], ..Case::default() };
    let Some((got, _)) = everywhere(&case) else { return };
    for (triple, got) in triples.iter().zip(got.chunks(3)) {
        let [x, y, z] = triple.map(f32::from_bits);
        assert_eq!(got[0], ((u64::from(triple[0]) * u64::from(triple[1])) >> 32) as u32);
        if !x.is_nan() {
            assert_eq!(got[1], (x * y + z).to_bits(), "{x} {y} {z}");
            assert_eq!(got[2], x.mul_add(y, z).to_bits(), "{x} {y} {z}");
        }
    }
    assert_ne!(got[1], got[2], "the first case must tell the two apart");
}

#[test]
fn correct_kernels_are_accepted() {
    let input: Vec<f32> = (0..5 * 64).map(whole).collect();
    let case =
        Case { grid: 1, block: 64, shared: 512, n: 5, input: bits(&input), output: vec![0; 64], ..Case::default() };
    let Some((got, _)) = everywhere(&Case { kernel: "sim_test_clean_pipeline", ..case.clone() }) else { return };
    for (thread, got) in floats(&got).into_iter().enumerate() {
        assert_eq!(got, (0..5).map(|tile| input[tile * 64 + (thread + 1) % 64]).sum::<f32>());
    }

    let (got, _) = everywhere(&Case { kernel: "sim_test_clean_reduce", shared: 0, ..case.clone() }).unwrap();
    let sum: f32 = input[..64].iter().sum();
    assert!(floats(&got).into_iter().all(|got| got == sum), "{sum}");

    let bytes = Case { kernel: "sim_test_clean_bytes", shared: 0, output: vec![0; 32], ..case.clone() };
    let (got, _) = everywhere(&bytes).unwrap();
    for (i, got) in bytemuck::cast_slice::<u32, u8>(&got).iter().enumerate() {
        let (from, factor) = (63 - i % 64, if i < 64 { 3 } else { 5 });
        assert_eq!(*got, (from * factor) as u8, "byte {i}");
    }

    let last_block =
        Case { kernel: "sim_test_clean_last_block", grid: 5, shared: 0, extra: vec![0; 5 * 64 + 1], ..case };
    let (got, extra) = everywhere(&last_block).unwrap();
    assert_eq!(extra[5 * 64], 5, "tickets");
    for (thread, got) in floats(&got).into_iter().enumerate() {
        assert_eq!(got, (0..5).map(|block| 2.0 * input[block * 64 + thread]).sum::<f32>());
    }
}

/// Line of the place that `// BUG name` marks.
fn line_of(name: &str) -> usize {
    let text = include_str!("../kernels/sim/tests/planted.cu");
    let marked = |line: &str| line.split_once("// BUG ").is_some_and(|(_, bug)| bug.trim() == name);
    1 + text.lines().position(marked).unwrap_or_else(|| panic!("planted.cu marks no line {name}"))
}

/// Every order reports the fault, with its kind and its place.
fn is_reported(bench: &Bench, name: &str, kernel: &'static str, kind: &str) {
    assert_eq!(kernel, format!("sim_test_{name}"));
    let words = vec![0; 64];
    let case =
        Case { kernel, grid: 1, block: 64, shared: 256, n: 64, input: words.clone(), output: words, ..Case::default() };
    let two_blocks = matches!(name, "blocks_race" | "ticket_without_fence");
    let case = if two_blocks { Case { grid: 2, output: vec![0; 128], extra: vec![0], ..case } } else { case };
    for order in ORDERS {
        bench.order(order);
        let message = match bench.run(&case) {
            Ok(_) => panic!("{name} in order {order} was not found"),
            Err(error) => error.to_string(),
        };
        if order == "fwd" {
            println!("{message}");
        }
        let place = format!("planted.cu:{}", line_of(name));
        assert!(message.contains(kind) && message.contains(kernel), "{name} in order {order}: {message}");
        let ends = message.split(&place).skip(1).any(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
        assert!(ends, "{name} in order {order} does not name {place}: {message}");
        // The runtime goes on afterwards.
        let good = Case { kernel: "sim_test_barriers", grid: 1, block: 64, output: vec![0; 256], ..Case::default() };
        bench.run(&good).unwrap();
    }
}

macro_rules! reported {
    ($($name:literal: $kind:literal),* $(,)?) => {
        [$(($name, concat!("sim_test_", $name), $kind)),*]
    };
}

/// What both variants find.
#[test]
fn faults_of_threads_that_wait_are_reported() {
    for bench in [Bench::fast, Bench::checked] {
        let Some(bench) = bench() else { continue };
        for (name, kernel, kind) in reported! {
            "divergent_barrier": "barrier",
            "exit_before_barrier": "exit",
            "two_barriers": "__syncthreads",
            "shuffle_missing_lanes": "warp divergence",
            "shuffle_exited_lanes": "exit",
            "shuffle_outside_mask": "not in mask",
            "deadlock": "deadlock",
            "stack_overflow": "stack overflow",
            "exit_outstanding": "copies outstanding",
            "trap": "__trap()",
            "division_by_zero": "division by zero",
        } {
            is_reported(&bench, name, kernel, kind);
        }
    }
}

#[test]
fn faults_of_memory_are_reported() {
    let Some(bench) = Bench::checked() else { return };
    for (name, kernel, kind) in reported! {
        "global_read": "OUT OF BOUNDS read of 4 bytes",
        "global_write": "OUT OF BOUNDS write of 4 bytes",
        "global_far": "OUT OF BOUNDS write of 4 bytes",
        "global_atomic": "OUT OF BOUNDS atomic operation of 4 bytes",
        "dynamic_shared": "OUT OF BOUNDS write of 4 bytes",
        "static_shared": "OUT OF BOUNDS index 64",
        "uninitialised": "UNINITIALISED read",
        "ldmatrix_uninitialised": "UNINITIALISED read",
        "misaligned": "MISALIGNED access of 16 bytes",
    } {
        is_reported(&bench, name, kernel, kind);
    }
}

#[test]
fn races_are_reported() {
    let Some(bench) = Bench::checked() else { return };
    for (name, kernel, kind) in reported! {
        "read_after_write": "RACE",
        "write_after_read": "RACE",
        "write_after_write": "RACE write after write",
        "missing_syncwarp": "RACE",
        "global_race": "RACE",
        "blocks_race": "RACE write after write",
        "bytes_race": "RACE write after write",
        "ticket_without_fence": "of another block",
        "read_before_wait": "ASYNC: read",
        "wait_without_barrier": "planted.cu",
        "stage_overwritten": "RACE",
    } {
        is_reported(&bench, name, kernel, kind);
    }
}

/// Without the checker: an access far outside still is an error, with its place, and not the end of the program.
#[test]
fn far_accesses_are_reported_without_the_checker() {
    let Some(bench) = Bench::fast() else { return };
    is_reported(&bench, "global_far", "sim_test_global_far", "illegal address");
}

#[test]
fn launches_that_do_not_fit_are_errors() {
    let Some(bench) = Bench::fast() else { return };
    let message = |kernel, args| bench.run_with_args(kernel, args).unwrap_err().to_string();
    assert!(message("sim_test_vote", &[0; 24]).contains("takes 32 bytes, not 24"));
    assert!(message("sim_test_nothing", &[0; 32]).contains("no kernel sim_test_nothing"));
    let big = Case { kernel: "sim_test_vote", grid: 1, block: 1025, ..Case::default() };
    assert!(bench.run(&big).unwrap_err().to_string().contains("bad block"));
    let shared = Case { block: 32, shared: 300_000, ..big };
    assert!(bench.run(&shared).unwrap_err().to_string().contains("shared memory"));
}
