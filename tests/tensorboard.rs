//! TensorBoard files, read back twice: by a small reader of the format written here, and by TensorBoard itself where it is installed.
#![cfg(feature = "tensorboard")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use ddim_engine::train::picture::Picture;
use ddim_engine::train::tensorboard::EventWriter;

/// CRC-32C bit by bit: slow, and independent of the table that the writer uses.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}

fn masked(bytes: &[u8]) -> u32 {
    let crc = crc32c(bytes);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The messages of an event file; panics on any wrong length or checksum.
fn records(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap();
    let mut rest = &bytes[..];
    let mut take = |n: usize| {
        let (head, tail) = rest.split_at_checked(n)?;
        rest = tail;
        Some(head)
    };
    let mut found = Vec::new();
    while let Some(length) = take(8) {
        assert_eq!(take(4).unwrap(), masked(length).to_le_bytes());
        let data = take(u64::from_le_bytes(length.try_into().unwrap()) as usize).unwrap();
        assert_eq!(take(4).unwrap(), masked(data).to_le_bytes());
        found.push(data.to_vec());
    }
    found
}

/// A field of a protocol buffer message.
#[derive(Clone, Debug, PartialEq)]
enum Value {
    Varint(u64),
    Double(f64),
    Bytes(Vec<u8>),
    Float(f32),
}

fn fields(mut message: &[u8]) -> Vec<(u64, Value)> {
    fn varint(message: &mut &[u8]) -> u64 {
        let end = message.iter().position(|b| b & 0x80 == 0).unwrap();
        let value = message[..=end].iter().rev().fold(0, |value, b| value << 7 | u64::from(b & 0x7f));
        *message = &message[end + 1..];
        value
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let mut take = |n: usize| {
            let (head, tail) = message.split_at(n);
            message = tail;
            head
        };
        let value = match key & 7 {
            0 => Value::Varint(varint(&mut message)),
            1 => Value::Double(f64::from_le_bytes(take(8).try_into().unwrap())),
            5 => Value::Float(f32::from_le_bytes(take(4).try_into().unwrap())),
            2 => {
                let n = varint(&mut message) as usize;
                let (head, tail) = message.split_at(n);
                message = tail;
                Value::Bytes(head.to_vec())
            }
            other => panic!("wire type {other}"),
        };
        found.push((key >> 3, value));
    }
    found
}

/// The field at the end of a path of field numbers.
fn field(message: &[u8], path: &[u64]) -> Option<Value> {
    let (_, value) = fields(message).into_iter().find(|(number, _)| *number == path[0])?;
    match (&value, &path[1..]) {
        (_, []) => Some(value),
        (Value::Bytes(inner), rest) => field(inner, rest),
        other => panic!("{other:?} is no message"),
    }
}

fn text(value: &str) -> Option<Value> {
    Some(Value::Bytes(value.into()))
}

fn event_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn picture(width: usize, height: usize, channels: usize) -> Picture {
    Picture::new(width, height, channels, (0..width * height * channels).map(|i| (i * 7 % 256) as u8).collect())
        .unwrap()
}

/// A run that logs steps 1 to 10, saved step 5, and went on from there with other values to step 12.
fn write_run(dir: &Path) {
    let mut writer = EventWriter::create(dir).unwrap();
    for step in 1..=10 {
        writer.scalar("loss/train", step, 1.0 / step as f64).unwrap();
    }
    for (step, picture) in [(5, picture(6, 4, 3)), (10, picture(5, 3, 1))] {
        writer.image_png("samples", step, picture.width, picture.height, &picture.png_bytes().unwrap()).unwrap();
    }
    writer.text("config", 0, "**seed** = 3, ü").unwrap();
    drop(writer);
    let mut writer = EventWriter::resume(dir, 5).unwrap();
    for step in 6..=12 {
        writer.scalar("loss/train", step, 100.0 + step as f64).unwrap();
    }
    writer.flush().unwrap();
}

#[test]
fn the_test_s_own_checksum_is_right() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283);
}

#[test]
fn every_event_reads_back() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path());
    let files = event_files(dir.path());
    assert_eq!(files.len(), 2, "a run that goes on opens another file");
    for file in &files {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents.") && name.split('.').count() >= 6, "{name}");
    }
    let first = records(&files[0]);
    assert_eq!(first.len(), 1 + 10 + 2 + 1);
    assert_eq!(field(&first[0], &[3]), text("brain.Event:2"));
    let Some(Value::Double(wall_time)) = field(&first[0], &[1]) else { panic!("no time") };
    assert!(wall_time > 1.7e9, "{wall_time}");

    assert_eq!(field(&first[4], &[2]), Some(Value::Varint(4)));
    assert_eq!(field(&first[4], &[5, 1, 1]), text("loss/train"));
    assert_eq!(field(&first[4], &[5, 1, 2]), Some(Value::Float(0.25)));

    for (record, expected, colours) in [(&first[11], picture(6, 4, 3), 3), (&first[12], picture(5, 3, 1), 1)] {
        assert_eq!(field(record, &[5, 1, 1]), text("samples"));
        assert_eq!(field(record, &[5, 1, 4, 1]), Some(Value::Varint(expected.height as u64)));
        assert_eq!(field(record, &[5, 1, 4, 2]), Some(Value::Varint(expected.width as u64)));
        assert_eq!(field(record, &[5, 1, 4, 3]), Some(Value::Varint(colours)));
        let Some(Value::Bytes(png)) = field(record, &[5, 1, 4, 4]) else { panic!("no picture") };
        assert_eq!(image::load_from_memory(&png).unwrap().as_bytes(), expected.pixels);
    }

    assert_eq!(field(&first[13], &[5, 1, 1]), text("config"));
    assert_eq!(field(&first[13], &[5, 1, 9, 1, 1]), text("text"));
    assert_eq!(field(&first[13], &[5, 1, 8, 1]), Some(Value::Varint(7)));
    assert_eq!(field(&first[13], &[5, 1, 8, 8]), text("**seed** = 3, ü"));

    let second = records(&files[1]);
    assert_eq!(second.len(), 2 + 7);
    // START of a session at step 6: what was said of later steps goes.
    assert_eq!(field(&second[1], &[2]), Some(Value::Varint(6)));
    assert_eq!(field(&second[1], &[7, 1]), Some(Value::Varint(1)));
}

#[test]
fn later_files_sort_behind_earlier_ones() {
    let dir = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = (0..4).map(|_| EventWriter::create(dir.path()).unwrap().path().to_path_buf()).collect();
    assert_eq!(event_files(dir.path()), paths, "within one second, too");
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let said = EventWriter::create(&file).unwrap_err().to_string();
    assert!(said.starts_with(&file.display().to_string()), "{said}");
}

#[test]
fn tensorboard_itself_reads_them() {
    let python = |arguments: &[&std::ffi::OsStr]| Command::new("python3").args(arguments).output();
    let importable =
        python(&["-c".as_ref(), "import tensorboard".as_ref()]).is_ok_and(|output| output.status.success());
    if !importable {
        // Not through eprintln, which the test harness would hold back.
        let why = "skipped: tensorboard_itself_reads_them: python package tensorboard not installed (pip install tensorboard)";
        writeln!(std::io::stderr(), "{why}").unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tensorboard_reads.py");
    let output = python(&[script.as_os_str(), dir.path().as_os_str()]).unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}{stderr}");
    assert_eq!(stdout.trim(), "ok: 12 scalars, 1 picture, 1 text");
}
