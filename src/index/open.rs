//! Opening the database: how its memory is divided, and what becomes of one that is damaged.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, LogLevel, Options, WriteBufferManager,
};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::index::Family;
use crate::units::ByteLen;

/// Smallest memory that serves: less is raised to this, or every write would wait for a flush.
const MEMORY_BYTES_MIN: u64 = 8 << 20;
/// Files kept open: their metadata counts as part of the block cache, the descriptors do not.
const OPEN_FILES_MAX: i32 = 128;
/// Longest data file. Small ones keep a compaction, and what it holds in memory, small.
const DATA_FILE_BYTES: u64 = 16 << 20;
/// The file that says that damage was met. RocksDB leaves files alone whose names it does not know.
const DAMAGE_NOTE: &str = "DAMAGED";

/// Opens what is there or creates it; moves it aside first if it is damaged.
pub(super) fn open(path: &Path, memory: ByteLen) -> Result<DB> {
    let describe = || format!("opening the index {}", path.display());
    if path.join(DAMAGE_NOTE).exists() {
        move_aside(path, "damage was met in it before")?;
    }
    let error = match create_and_open(path, memory) {
        Ok(db) => return Ok(db),
        Err(error) => error,
    };
    if error_kind(&error) == ErrorKind::Damaged {
        move_aside(path, error.as_ref())?;
        return create_and_open(path, memory)
            .map_err(|error| Error::new(error_kind(&error), format!("{}: {error}", describe())));
    }
    Err(Error::new(error_kind(&error), format!("{}: {error}", describe())))
}

fn create_and_open(path: &Path, memory: ByteLen) -> Result<DB, rocksdb::Error> {
    // For the owner only. If it cannot be created, RocksDB cannot either, and says so.
    let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    let memory = usize::try_from(memory.0.max(MEMORY_BYTES_MIN)).unwrap_or(usize::MAX);
    // One cache for everything: blocks, filters, table indexes, and (through the manager) the write buffers.
    let cache = Cache::new_lru_cache(memory);
    let manager = WriteBufferManager::new_write_buffer_manager_with_cache(memory / 4, false, cache.clone());
    let families =
        Family::ALL.map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(&cache, &manager, memory)));
    let mut options = family_options(&cache, &manager, memory);
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    DB::open_cf_descriptors(&options, path, families)
}

fn family_options(cache: &Cache, manager: &WriteBufferManager, memory: usize) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_ribbon_filter(10.0);
    blocks.set_optimize_filters_for_memory(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&blocks);
    options.set_write_buffer_manager(manager);
    // The manager flushes at a quarter of the memory but does not make writers wait; this does: each of
    // the families can fill two buffers, so that together they never take more than half.
    options.set_write_buffer_size(memory / 16);
    options.set_max_write_buffer_number(2);
    options.set_atomic_flush(true);
    // Two cores are shared with the data path: one flush and one compaction at a time.
    options.set_max_background_jobs(2);
    options.set_max_open_files(OPEN_FILES_MAX);
    options.set_target_file_size_base(DATA_FILE_BYTES);
    options.set_compaction_readahead_size(256 << 10);
    options.set_bytes_per_sync(1 << 20);
    // Pages and segment indexes are compact as they are, and no compression library is built in.
    options.set_compression_type(DBCompressionType::None);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_max_manifest_file_size(16 << 20);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

/// What the receiver of RocksDB's error must do. RocksDB tells errors of the system apart by their words only.
pub(super) fn error_kind(error: &rocksdb::Error) -> ErrorKind {
    let words = error.to_string();
    let says = |any: &[&str]| any.iter().any(|part| words.contains(part));
    match error.kind() {
        rocksdb::ErrorKind::IOError if says(&["/LOCK: ", "lock hold by", "LOCK: No locks"]) => ErrorKind::Busy,
        rocksdb::ErrorKind::IOError if says(&["No space left", "quota exceeded"]) => ErrorKind::Full,
        // A file that the manifest names is missing, or cannot be read any more.
        rocksdb::ErrorKind::IOError if says(&["No such file", "Input/output error"]) => ErrorKind::Damaged,
        rocksdb::ErrorKind::Corruption | rocksdb::ErrorKind::InvalidArgument | rocksdb::ErrorKind::NotSupported => {
            ErrorKind::Damaged
        }
        _ => ErrorKind::Io,
    }
}

/// Where a damaged database is moved.
pub(super) fn aside_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".damaged");
    name.into()
}

/// Says, for the next open, that damage was met.
pub(super) fn note_damage(path: &Path) {
    if let Err(error) = fs::write(path.join(DAMAGE_NOTE), b"damage was met here; the next start makes this anew\n") {
        tracing::warn!("cannot note the damage in {}: {error}; remove that directory by hand", path.display());
    }
}

fn move_aside(path: &Path, why: &str) -> Result<()> {
    let aside = aside_path(path);
    let describe = || format!("moving the damaged index {} aside", path.display());
    // One is kept: enough to look into, and the disk does not fill up with them.
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(describe),
        _ => {}
    }
    fs::rename(path, &aside).context(describe)?;
    tracing::warn!(
        "the index {} is damaged ({why}): it was moved to {} and is rebuilt from the write logs and the store",
        path.display(),
        aside.display()
    );
    Ok(())
}
