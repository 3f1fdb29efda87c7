//! Pictures in parquet files, as the Hugging Face hub keeps them: a column `image` of encoded pictures (a structure of `bytes` and `path`,
//! or plain bytes), perhaps a column `label`. One file, or a folder of shards that are taken together in the order of their names.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use ::parquet::basic::{Compression, Type};
use ::parquet::column::reader::{ColumnReader, ColumnReaderImpl};
use ::parquet::data_type::DataType;
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::ParquetMetaData;
use ::parquet::file::reader::{FileReader, RowGroupReader};
use ::parquet::file::serialized_reader::SerializedFileReader;
use walkdir::WalkDir;

use super::{Labels, source};
use crate::error::{Error, Result};

/// Names of the column of pictures, the preferred one first.
const IMAGE: [&str; 3] = ["image", "img", "picture"];
/// Names of the column of classes.
const LABEL: [&str; 4] = ["label", "labels", "fine_label", "class"];
/// Rows that are decoded together: enough for all cores, and a bound on memory.
pub(super) const ROWS: usize = 256;

/// The rows of one or more files.
#[derive(Debug)]
pub(super) struct Table {
    /// The file, or the folder of shards.
    pub path: PathBuf,
    shards: Vec<Shard>,
    /// A name for each row: its path, where there is one of its own, else the file and the number of the row.
    pub names: Vec<String>,
    labels: Option<(Vec<String>, Vec<u32>)>,
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    stamp: String,
    /// Number of the column of bytes.
    image: usize,
}

/// The parquet files below a folder, by name.
pub(super) fn shards(folder: &Path) -> Vec<PathBuf> {
    let files = WalkDir::new(folder).follow_links(true).into_iter().flatten().filter(|step| step.file_type().is_file());
    let mut paths: Vec<PathBuf> = files.map(|step| step.into_path()).filter(|path| is_parquet_name(path)).collect();
    paths.sort();
    paths
}

/// Whether the name says parquet; hidden files do not count.
pub(super) fn is_parquet_name(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("parquet"))
        && !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// The rows of `files`, which `path` stands for.
pub(super) fn list(path: &Path, files: Vec<PathBuf>) -> Result<Table> {
    let mut table = Table { path: path.to_path_buf(), shards: Vec::new(), names: Vec::new(), labels: None };
    let mut taken = HashSet::new();
    let mut labels: Option<Vec<String>> = Some(Vec::new());
    let mut class_names: Option<Vec<String>> = None;
    for file in files {
        let meta = std::fs::metadata(&file).map_err(Error::io(&file, "read"))?;
        let reader = open(&file)?;
        let columns = Columns::find(&file, reader.metadata())?;
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let shard = Shard { path: file, stamp: source::stamp(&meta), image: columns.image };
        let mut row = 0;
        for group in 0..reader.num_row_groups() {
            let rows = shard.group(&reader, group)?;
            let count = shard.rows(rows.metadata().num_rows())?;
            let paths = match columns.path {
                Some(column) => shard.texts(rows.as_ref(), column, count)?,
                None => vec![None; count],
            };
            for path in paths {
                let name = path.filter(|name| !name.trim().is_empty() && taken.insert(name.clone()));
                let name = name.unwrap_or_else(|| {
                    let mut name = format!("{stem}/{row:06}");
                    while !taken.insert(name.clone()) {
                        name.push('_'); // shards of two folders may have one name
                    }
                    name
                });
                table.names.push(name);
                row += 1;
            }
            labels = match (labels.take(), columns.label) {
                (Some(mut all), Some(column)) => {
                    let found = shard.texts(rows.as_ref(), column, count)?;
                    // -1 is how that hub writes "not told".
                    let told: Option<Vec<String>> =
                        found.into_iter().map(|label| label.filter(|label| label != "-1")).collect();
                    told.map(|told| {
                        all.extend(told);
                        all
                    })
                }
                _ => None,
            };
        }
        class_names = class_names.or(columns.class_names);
        table.shards.push(shard);
    }
    if table.names.is_empty() {
        return Err(Error::input(path, "no rows; expected a parquet file with a column `image`"));
    }
    table.labels = labels.map(|labels| classes(&labels, class_names));
    Ok(table)
}

/// Names of the classes, and the class of each row. Numbers are places in `names` where those are known.
fn classes(labels: &[String], names: Option<Vec<String>>) -> (Vec<String>, Vec<u32>) {
    let places: Option<Vec<u32>> = labels.iter().map(|label| label.parse().ok()).collect();
    if let (Some(names), Some(places)) = (names, places)
        && places.iter().all(|&place| (place as usize) < names.len())
    {
        return (names, places);
    }
    Labels::ordered_of(labels)
}

impl Table {
    /// The state of all files, for the key of the cache.
    pub fn stamp(&self) -> String {
        let lines: Vec<String> =
            self.shards.iter().map(|s| format!("{} {} column {}", s.path.display(), s.stamp, s.image)).collect();
        lines.join("; ")
    }

    /// Classes of the rows with these names, which are some of its own in order.
    pub fn labels_of(&self, names: &[String]) -> Option<Labels> {
        let (classes, of) = self.labels.as_ref()?;
        let places: HashMap<&str, u32> = self.names.iter().map(String::as_str).zip(of.iter().copied()).collect();
        let of: Option<Vec<u32>> = names.iter().map(|name| places.get(name.as_str()).copied()).collect();
        Some(Labels::from_parts(classes.clone(), of?))
    }

    /// Calls `visit` with the bytes of pictures, at most [`ROWS`] at a time, in order; None where a row has none.
    pub fn read(&self, mut visit: impl FnMut(Vec<Option<::parquet::data_type::ByteArray>>)) -> Result<()> {
        for shard in &self.shards {
            let reader = open(&shard.path)?;
            for group in 0..reader.num_row_groups() {
                let rows = shard.group(&reader, group)?;
                let mut left = shard.rows(rows.metadata().num_rows())?;
                let column = guarded(&shard.path, || rows.get_column_reader(shard.image))?;
                let ColumnReader::ByteArrayColumnReader(mut column) = column else {
                    return Err(Error::input(&shard.path, "the column of pictures changed its type while it was read"));
                };
                let full = full_level(rows.as_ref(), shard.image);
                while left > 0 {
                    let values = shard.values(&mut column, full, left.min(ROWS))?;
                    left -= values.len();
                    visit(values);
                }
            }
        }
        Ok(())
    }
}

/// Definition level of a value that is there.
fn full_level(rows: &dyn RowGroupReader, column: usize) -> i16 {
    rows.metadata().column(column).column_descr().max_def_level()
}

impl Shard {
    fn group<'r>(&self, reader: &'r SerializedFileReader<File>, group: usize) -> Result<Box<dyn RowGroupReader + 'r>> {
        guarded(&self.path, || reader.get_row_group(group))
    }

    fn rows(&self, rows: i64) -> Result<usize> {
        usize::try_from(rows)
            .map_err(|_| Error::input(&self.path, format!("a group of {rows} rows; the file is damaged")))
    }

    /// Up to `count` values, all that are left if fewer; None where there is none.
    fn values<T: DataType>(
        &self,
        column: &mut ColumnReaderImpl<T>,
        full: i16,
        count: usize,
    ) -> Result<Vec<Option<T::T>>> {
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        let (rows, _, _) = guarded(&self.path, || column.read_records(count, Some(&mut levels), None, &mut values))?;
        let there = |level: &i16| *level == full;
        let fits =
            full == 0 || (levels.len() == rows && levels.iter().filter(|level| there(level)).count() == values.len());
        if rows != count || !fits {
            return Err(Error::input(
                &self.path,
                format!("found {rows} rows where {count} are announced; copy or download it again"),
            ));
        }
        if full == 0 {
            return Ok(values.into_iter().map(Some).collect());
        }
        let mut values = values.into_iter();
        Ok(levels.iter().map(|level| if there(level) { values.next() } else { None }).collect())
    }

    /// A column of text or whole numbers, as text.
    fn texts(&self, rows: &dyn RowGroupReader, column: usize, count: usize) -> Result<Vec<Option<String>>> {
        let full = full_level(rows, column);
        fn all<V>(values: Vec<Option<V>>, text: impl Fn(V) -> String) -> Vec<Option<String>> {
            values.into_iter().map(|value| value.map(&text)).collect()
        }
        match guarded(&self.path, || rows.get_column_reader(column))? {
            ColumnReader::Int32ColumnReader(mut c) => Ok(all(self.values(&mut c, full, count)?, |v| v.to_string())),
            ColumnReader::Int64ColumnReader(mut c) => Ok(all(self.values(&mut c, full, count)?, |v| v.to_string())),
            ColumnReader::ByteArrayColumnReader(mut c) => {
                Ok(all(self.values(&mut c, full, count)?, |v| String::from_utf8_lossy(v.data()).into_owned()))
            }
            _ => Ok(vec![None; count]),
        }
    }
}

/// Which columns of a file are what.
struct Columns {
    image: usize,
    path: Option<usize>,
    label: Option<usize>,
    class_names: Option<Vec<String>>,
}

impl Columns {
    fn find(file: &Path, meta: &ParquetMetaData) -> Result<Columns> {
        let schema = meta.file_metadata().schema_descr();
        let columns: Vec<(String, Type)> =
            schema.columns().iter().map(|c| (c.path().string(), c.physical_type())).collect();
        // Lists of pictures, say, are no column of pictures.
        let plain = |at: usize| schema.columns()[at].max_rep_level() == 0;
        let find = |name: &str, types: &[Type]| {
            columns.iter().enumerate().position(|(at, (n, t))| n == name && types.contains(t) && plain(at))
        };
        let image = IMAGE.iter().find_map(|name| {
            let bytes = find(&format!("{name}.bytes"), &[Type::BYTE_ARRAY]);
            bytes.map(|at| (at, *name)).or_else(|| find(name, &[Type::BYTE_ARRAY]).map(|at| (at, *name)))
        });
        let Some((image, root)) = image else {
            let found: Vec<String> = columns.iter().map(|(name, kind)| format!("{name} ({kind})")).collect();
            return Err(Error::input(
                file,
                format!(
                    "no column of pictures; expected `image`, a structure of bytes and path or plain bytes. Columns found: {}",
                    found.join(", ")
                ),
            ));
        };
        let path = find(&format!("{root}.path"), &[Type::BYTE_ARRAY]);
        let label = LABEL.iter().find_map(|name| find(name, &[Type::INT32, Type::INT64, Type::BYTE_ARRAY]));
        let used = [Some(image), path, label];
        for group in meta.row_groups() {
            for column in used.into_iter().flatten().filter_map(|at| group.columns().get(at)) {
                let offsets = [column.data_page_offset(), column.dictionary_page_offset().unwrap_or(0)];
                if offsets.iter().any(|&at| at < 0) || column.compressed_size() < 0 {
                    let name = column.column_path().string();
                    let what =
                        format!("column `{name}` begins before the file; it is damaged: copy or download it again");
                    return Err(Error::input(file, what));
                }
                let codec = column.compression();
                if !matches!(codec, Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_)) {
                    let codec = format!("{codec:?}");
                    let codec = codec.split('(').next().unwrap_or_default();
                    return Err(Error::input(
                        file,
                        format!(
                            "column `{}` is compressed with {codec}, which is not built in; expected SNAPPY, GZIP or none. With pyarrow: \
                             pyarrow.parquet.write_table(pyarrow.parquet.read_table(FILE), NEW, compression=\"snappy\")",
                            column.column_path().string()
                        ),
                    ));
                }
            }
        }
        let label_name = label.map(|at| columns[at].0.as_str());
        Ok(Columns { image, path, label, class_names: label_name.and_then(|name| class_names(meta, name)) })
    }
}

/// Names of the classes of column `label`, as the library `datasets` notes them in a file.
fn class_names(meta: &ParquetMetaData, label: &str) -> Option<Vec<String>> {
    let notes = meta.file_metadata().key_value_metadata()?;
    let text = notes.iter().find(|note| note.key == "huggingface")?.value.as_deref()?;
    let json: serde_json::Value = serde_json::from_str(text).ok()?;
    let names = json.pointer(&format!("/info/features/{label}/names"))?.as_array()?;
    names.iter().map(|name| name.as_str().map(String::from)).collect()
}

fn open(file: &Path) -> Result<SerializedFileReader<File>> {
    let handle = File::open(file).map_err(|why| Error::input(file, format!("cannot be opened: {why}")))?;
    guarded(file, || SerializedFileReader::new(handle))
}

/// Asks the library, which panics at some damaged files. What it was reading is not used after that.
fn guarded<T>(file: &Path, ask: impl FnOnce() -> std::result::Result<T, ParquetError>) -> Result<T> {
    let panicked = |_| Err(ParquetError::General("impossible values".into()));
    catch_unwind(AssertUnwindSafe(ask)).unwrap_or_else(panicked).map_err(|why| broken(file, &why))
}

fn broken(file: &Path, why: &ParquetError) -> Error {
    let why = why.to_string();
    let why = why.trim_start_matches("Parquet error: ").lines().next().unwrap_or_default();
    Error::input(file, format!("is no parquet file, or is damaged or cut short ({why}); copy or download it again"))
}
