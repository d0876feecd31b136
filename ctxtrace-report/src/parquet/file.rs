//! Writes one table of one run as a Parquet file.

use std::io::{self, Write};
use std::sync::Arc;

use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::record::RecordWriter;
use parquet::schema::types::{Type, TypePtr};

use super::TableFolder;

/// Name and version of the schema of the tables, stored in the metadata of every file.
const SCHEMA: &str = "ctxtrace.tables/1";

/// A Parquet file that is written one row group at a time.
pub(super) struct TableFile {
    writer: SerializedFileWriter<Box<dyn Write + Send>>,
}

impl TableFile {
    /// Creates a file for rows of this type.
    pub(super) fn begin<R>(folder: &mut dyn TableFolder, table: &str, name: &str) -> io::Result<Self>
    where
        for<'r> &'r [R]: RecordWriter<R>,
    {
        let properties = WriterProperties::builder()
            .set_created_by(format!("ctxtrace {}", env!("CARGO_PKG_VERSION")))
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_key_value_metadata(Some(vec![KeyValue::new(
                "ctxtrace.schema".to_owned(),
                SCHEMA.to_owned(),
            )]))
            .build();
        let schema = schema::<R>(table).map_err(of_parquet)?;
        let writer =
            SerializedFileWriter::new(folder.create(table, name)?, schema, Arc::new(properties)).map_err(of_parquet)?;
        Ok(Self { writer })
    }

    /// Writes these rows as one row group. Without rows nothing is written.
    pub(super) fn rows<R>(&mut self, rows: &[R]) -> io::Result<()>
    where
        for<'r> &'r [R]: RecordWriter<R>,
    {
        if rows.is_empty() {
            return Ok(());
        }
        let mut group = self.writer.next_row_group().map_err(of_parquet)?;
        rows.write_to_row_group(&mut group).map_err(of_parquet)?;
        group.close().map(drop).map_err(of_parquet)
    }

    /// Ends the file.
    pub(super) fn end(self) -> io::Result<()> {
        self.writer.into_inner().map_err(of_parquet)?.flush()
    }
}

/// The schema of a table whose rows have this type.
pub(super) fn schema<R>(table: &str) -> Result<TypePtr, ParquetError>
where
    for<'r> &'r [R]: RecordWriter<R>,
{
    let none: &[R] = &[];
    let columns = none.schema()?.get_fields().to_vec();
    Type::group_type_builder(table)
        .with_fields(columns)
        .build()
        .map(Arc::new)
}

fn of_parquet(error: ParquetError) -> io::Error {
    match error {
        ParquetError::External(error) => match error.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(error) => io::Error::other(error),
        },
        error => io::Error::other(error),
    }
}
