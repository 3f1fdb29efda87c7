//! TensorBoard event files: scalars, pictures and text beside `metrics.jsonl`, with hand-encoded protocol buffers.
//!
//! A file is a row of records: length (u64), masked CRC-32C of the length, an `Event` message, masked CRC-32C of the message. Field
//! numbers are those of TensorFlow's `event.proto`, `summary.proto` and `tensor.proto`. Scalars and pictures use the plain fields
//! (`simple_value`, `image`) that every version of TensorBoard reads. Without the feature `tensorboard` the same names do nothing.

#[cfg(feature = "tensorboard")]
pub use enabled::EventWriter;

#[cfg(not(feature = "tensorboard"))]
pub use disabled::EventWriter;

#[cfg(feature = "tensorboard")]
mod enabled {
    use std::fs::{self, File, OpenOptions};
    use std::io::{self, BufWriter, Write};
    use std::path::{Path, PathBuf};
    use std::time::{SystemTime, UNIX_EPOCH};

    use crate::error::{Error, Result};

    const PREFIX: &str = "events.out.tfevents.";

    /// Appends events to one file. Flushed by [`EventWriter::flush`] and when dropped.
    #[derive(Debug)]
    pub struct EventWriter {
        out: BufWriter<File>,
        path: PathBuf,
    }

    impl EventWriter {
        /// Starts an event file in `dir`.
        pub fn create(dir: &Path) -> Result<Self> {
            let path = new_path(dir)?;
            let action = "create the TensorBoard file";
            let file = OpenOptions::new().write(true).create_new(true).open(&path).map_err(Error::io(&path, action))?;
            let mut writer = EventWriter { out: BufWriter::new(file), path };
            let mut event = event_at(0);
            // Version 2 makes TensorBoard believe the session log about restarts.
            event.bytes(3, b"brain.Event:2");
            writer.record(&event)?;
            writer.flush()?;
            Ok(writer)
        }

        /// Starts another event file in `dir` for a run that goes on after `step`; TensorBoard drops what earlier files say of later
        /// steps.
        pub fn resume(dir: &Path, step: u64) -> Result<Self> {
            let mut writer = Self::create(dir)?;
            let mut session = Message::default();
            session.varint(1, 1); // status: START
            let mut event = event_at(step + 1);
            event.message(7, &session);
            writer.record(&event)?;
            writer.flush()?;
            Ok(writer)
        }

        /// The file.
        pub fn path(&self) -> &Path {
            &self.path
        }

        /// A point of the curve `tag`. Slashes in a tag make groups.
        pub fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
            let mut v = Message::default();
            v.bytes(1, tag.as_bytes());
            v.float(2, value as f32);
            self.value(step, &v)
        }

        /// A picture, as the bytes of a PNG file.
        pub fn image_png(&mut self, tag: &str, step: u64, width: usize, height: usize, png_bytes: &[u8]) -> Result<()> {
            let mut image = Message::default();
            image.varint(1, height as u64);
            image.varint(2, width as u64);
            image.varint(3, colorspace(png_bytes));
            image.bytes(4, png_bytes);
            let mut v = Message::default();
            v.bytes(1, tag.as_bytes());
            v.message(4, &image);
            self.value(step, &v)
        }

        /// Text, shown as Markdown.
        pub fn text(&mut self, tag: &str, step: u64, text: &str) -> Result<()> {
            let mut plugin = Message::default();
            plugin.bytes(1, b"text");
            let mut metadata = Message::default();
            metadata.message(1, &plugin);
            let mut extent = Message::default();
            extent.varint(1, 1);
            let mut shape = Message::default();
            shape.message(2, &extent);
            let mut tensor = Message::default();
            tensor.varint(1, 7); // dtype: DT_STRING
            tensor.message(2, &shape);
            tensor.bytes(8, text.as_bytes());
            let mut v = Message::default();
            v.bytes(1, tag.as_bytes());
            v.message(8, &tensor);
            v.message(9, &metadata);
            self.value(step, &v)
        }

        /// Hands all events to the system, for TensorBoard to see.
        pub fn flush(&mut self) -> Result<()> {
            self.out.flush().map_err(Error::io(&self.path, "write the TensorBoard file"))
        }

        fn value(&mut self, step: u64, value: &Message) -> Result<()> {
            let mut summary = Message::default();
            summary.message(1, value);
            let mut event = event_at(step);
            event.message(5, &summary);
            self.record(&event)
        }

        fn record(&mut self, event: &Message) -> Result<()> {
            let length = (event.0.len() as u64).to_le_bytes();
            let mut write = || -> io::Result<()> {
                self.out.write_all(&length)?;
                self.out.write_all(&masked_crc(&length).to_le_bytes())?;
                self.out.write_all(&event.0)?;
                self.out.write_all(&masked_crc(&event.0).to_le_bytes())
            };
            write().map_err(Error::io(&self.path, "write the TensorBoard file"))
        }
    }

    /// `events.out.tfevents.<unix>.<host>.<process>`. TensorBoard reads files in the order of their names, so the time is later than
    /// that of every file there.
    fn new_path(dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir).map_err(Error::io(dir, "create the folder of TensorBoard files"))?;
        let mut seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        for entry in fs::read_dir(dir).map_err(Error::io(dir, "list the TensorBoard files"))?.flatten() {
            let name = entry.file_name();
            let time = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.split('.').next()?.parse::<u64>().ok());
            seconds = seconds.max(time.map_or(0, |t| t.saturating_add(1)));
        }
        // Known without a system call only on Linux; the name is for people, so any will do elsewhere.
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.trim().chars().filter(|c| c.is_ascii_alphanumeric() || "-_".contains(*c)).collect();
        let host = if host.is_empty() { "localhost" } else { &host };
        Ok(dir.join(format!("{PREFIX}{seconds:010}.{host}.{}", std::process::id())))
    }

    fn event_at(step: u64) -> Message {
        let wall_time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        let mut event = Message::default();
        event.double(1, wall_time);
        event.varint(2, step);
        event
    }

    /// Channels by the colour type in a PNG's header; 3 where there is none.
    fn colorspace(png: &[u8]) -> u64 {
        match png.get(25) {
            Some(0) => 1,
            Some(4) => 2,
            Some(6) => 4,
            _ => 3,
        }
    }

    /// The checksum of records: rotated and moved, so that a CRC of data that hold CRCs stays a good one.
    fn masked_crc(bytes: &[u8]) -> u32 {
        crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
    }

    /// A protocol buffer message in the making. Fields follow in the order of the calls.
    #[derive(Default)]
    struct Message(Vec<u8>);

    impl Message {
        fn raw_varint(&mut self, mut value: u64) {
            while value >= 0x80 {
                self.0.push(value as u8 | 0x80);
                value >>= 7;
            }
            self.0.push(value as u8);
        }

        fn key(&mut self, field: u64, wire_type: u64) {
            self.raw_varint(field << 3 | wire_type);
        }

        fn varint(&mut self, field: u64, value: u64) {
            self.key(field, 0);
            self.raw_varint(value);
        }

        fn double(&mut self, field: u64, value: f64) {
            self.key(field, 1);
            self.0.extend_from_slice(&value.to_le_bytes());
        }

        fn bytes(&mut self, field: u64, value: &[u8]) {
            self.key(field, 2);
            self.raw_varint(value.len() as u64);
            self.0.extend_from_slice(value);
        }

        fn message(&mut self, field: u64, value: &Message) {
            self.bytes(field, &value.0);
        }

        fn float(&mut self, field: u64, value: f32) {
            self.key(field, 5);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }
}

#[cfg(not(feature = "tensorboard"))]
mod disabled {
    use std::path::Path;

    use crate::error::Result;

    /// Does nothing: this build has no feature `tensorboard`.
    #[derive(Debug)]
    pub struct EventWriter(());

    impl EventWriter {
        /// Makes no file.
        pub fn create(_dir: &Path) -> Result<Self> {
            Ok(EventWriter(()))
        }

        /// Makes no file.
        pub fn resume(_dir: &Path, _step: u64) -> Result<Self> {
            Ok(EventWriter(()))
        }

        /// No file: an empty path.
        pub fn path(&self) -> &Path {
            Path::new("")
        }

        /// Drops the point.
        pub fn scalar(&mut self, _tag: &str, _step: u64, _value: f64) -> Result<()> {
            Ok(())
        }

        /// Drops the picture.
        pub fn image_png(&mut self, _tag: &str, _step: u64, _width: usize, _height: usize, _png: &[u8]) -> Result<()> {
            Ok(())
        }

        /// Drops the text.
        pub fn text(&mut self, _tag: &str, _step: u64, _text: &str) -> Result<()> {
            Ok(())
        }

        /// Nothing to flush.
        pub fn flush(&mut self) -> Result<()> {
            Ok(())
        }
    }
}
