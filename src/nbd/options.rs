//! Decodes the data of handshake options and encodes the replies to them. Pure.

use super::protocol::{OPTION_REPLY_MAGIC, Put, Reader, info, option_reply, transmission};
use super::reply::{CHANGES_PREFIX, MetaContext};
use crate::block_device::{ExportEntry, Geometry};
use crate::limits::{NBD_STRING_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::units::SnapshotId;

/// Contexts that one client can choose, or that are listed: each takes a part of every answer.
const CONTEXTS_MAX: usize = 64;

/// The data of an option is not of its form; the text says how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

/// What INFO and GO ask for.
#[derive(Debug, PartialEq, Eq)]
pub struct InfoQuery<'a> {
    /// The export, as it came.
    pub name: &'a [u8],
    /// Items of information wanted; see [`info`].
    pub wants: Vec<u16>,
}

/// What LIST_META_CONTEXT and SET_META_CONTEXT ask for.
#[derive(Debug, PartialEq, Eq)]
pub struct MetaQuery<'a> {
    /// The export, as it came.
    pub name: &'a [u8],
    /// Names of contexts, or of namespaces with a colon.
    pub queries: Vec<&'a [u8]>,
}

/// Decodes the data of INFO and GO.
///
/// # Errors
/// [`Malformed`].
pub fn decode_info(data: &[u8]) -> Result<InfoQuery<'_>, Malformed> {
    let mut reader = Reader(data);
    let name = reader.string().ok_or(Malformed("the name is longer than the option"))?;
    let count = reader.u16().ok_or(Malformed("the number of information requests is missing"))?;
    let mut wants = Vec::new();
    for _ in 0..count {
        wants.push(reader.u16().ok_or(Malformed("there are fewer information requests than announced"))?);
    }
    if !reader.is_empty() {
        return Err(Malformed("there is something behind the information requests"));
    }
    Ok(InfoQuery { name, wants })
}

/// Decodes the data of LIST_META_CONTEXT and SET_META_CONTEXT.
///
/// # Errors
/// [`Malformed`].
pub fn decode_meta(data: &[u8]) -> Result<MetaQuery<'_>, Malformed> {
    let mut reader = Reader(data);
    let name = reader.string().ok_or(Malformed("the name is longer than the option"))?;
    let count = reader.u32().ok_or(Malformed("the number of queries is missing"))?;
    let mut queries = Vec::new();
    // An absurd count ends at the first query that is not there.
    for _ in 0..count {
        queries.push(reader.string().ok_or(Malformed("a query is longer than the option, or missing"))?);
    }
    if !reader.is_empty() {
        return Err(Malformed("there is something behind the queries"));
    }
    Ok(MetaQuery { name, queries })
}

/// Checks the queries for contexts.
///
/// # Errors
/// [`Malformed`] for a query without a colon.
pub fn check_queries(queries: &[&[u8]]) -> Result<(), Malformed> {
    if queries.iter().any(|query| !query.contains(&b':')) {
        return Err(Malformed("a query has no colon"));
    }
    Ok(())
}

/// The contexts that `queries` select, each once, of those that every export has and of the changes since `snapshots`. For a `list`, no
/// query means all, and a namespace with its colon means all of that namespace.
pub fn select_contexts(queries: &[&[u8]], list: bool, snapshots: &[SnapshotId]) -> Vec<MetaContext> {
    let changes = |(position, &since): (u32, &SnapshotId)| MetaContext::Changes { since, position };
    let all = [MetaContext::Allocation, MetaContext::Residence].into_iter().chain((0..).zip(snapshots).map(changes));
    let selected = |context: &MetaContext| is_selected(context.name().as_bytes(), queries, list);
    all.filter(selected).take(CONTEXTS_MAX).collect()
}

fn is_selected(name: &[u8], queries: &[&[u8]], list: bool) -> bool {
    let wildcard = |query: &[u8]| list && query.ends_with(b":") && name.starts_with(query);
    (list && queries.is_empty()) || queries.iter().any(|&query| query == name || wildcard(query))
}

/// The snapshots that queries for changes name.
pub fn snapshots_named(queries: &[&[u8]]) -> Vec<SnapshotId> {
    let named = queries.iter().filter_map(|query| {
        let id = query.strip_prefix(CHANGES_PREFIX.as_bytes())?;
        std::str::from_utf8(id).ok()?.parse::<SnapshotId>().ok()
    });
    let mut snapshots: Vec<SnapshotId> = named.collect();
    snapshots.sort_unstable();
    snapshots.dedup();
    snapshots.truncate(CONTEXTS_MAX);
    snapshots
}

/// True if queries of a `list` select the changes since all snapshots of an export.
pub fn names_all_snapshots(queries: &[&[u8]], list: bool) -> bool {
    list && (queries.is_empty() || queries.iter().any(|query| is_selected(CHANGES_PREFIX.as_bytes(), &[query], true)))
}

/// An export's name as text.
///
/// # Errors
/// Why no export can have that name.
pub fn export_name(name: &[u8]) -> Result<&str, Malformed> {
    if name.len() > NBD_STRING_BYTES_MAX {
        return Err(Malformed("the name of an export has at most 4096 bytes"));
    }
    let name = std::str::from_utf8(name).map_err(|_| Malformed("the name of an export is UTF-8"))?;
    if name.contains('\0') {
        return Err(Malformed("the name of an export has no NUL"));
    }
    Ok(name)
}

/// Appends a reply of kind `kind` to `option`. What is longer than the protocol can say is cut.
pub fn put_reply(out: &mut Vec<u8>, option: u32, kind: u32, payload: &[u8]) {
    let payload = &payload[..payload.len().min(2 * NBD_STRING_BYTES_MAX + 16)];
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(u32::try_from(payload.len()).unwrap_or(0));
    out.put(payload);
}

/// Appends an error with its message.
pub fn put_error(out: &mut Vec<u8>, option: u32, kind: u32, message: &str) {
    put_reply(out, option, kind, cut(message).as_bytes());
}

/// Appends one entry of the list of exports.
pub fn put_export(out: &mut Vec<u8>, option: u32, entry: &ExportEntry) {
    let name = cut(&entry.name);
    let mut payload = Vec::new();
    payload.put_u32(u32::try_from(name.len()).unwrap_or(0));
    payload.put(name.as_bytes());
    payload.put(cut(&entry.description).as_bytes());
    put_reply(out, option, option_reply::SERVER, &payload);
}

/// Appends a metadata context. In a list the number means nothing and is 0.
pub fn put_context(out: &mut Vec<u8>, option: u32, context: MetaContext, list: bool) {
    let mut payload = Vec::new();
    payload.put_u32(if list { 0 } else { context.id() });
    payload.put(context.name().as_bytes());
    put_reply(out, option, option_reply::META_CONTEXT, &payload);
}

/// Appends an export's size and transmission flags.
pub fn put_info_export(out: &mut Vec<u8>, option: u32, size: u64, flags: u16) {
    let mut payload = Vec::new();
    payload.put_u16(info::EXPORT);
    payload.put_u64(size);
    payload.put_u16(flags);
    put_reply(out, option, option_reply::INFO, &payload);
}

/// Appends an export's name or description.
pub fn put_info_text(out: &mut Vec<u8>, option: u32, kind: u16, text: &str) {
    let mut payload = Vec::new();
    payload.put_u16(kind);
    payload.put(cut(text).as_bytes());
    put_reply(out, option, option_reply::INFO, &payload);
}

/// Appends the lengths that requests should and may have.
pub fn put_info_block_size(out: &mut Vec<u8>, option: u32, geometry: &Geometry) {
    let mut payload = Vec::new();
    payload.put_u16(info::BLOCK_SIZE);
    payload.put_u32(1);
    payload.put_u32(geometry.preferred_block);
    payload.put_u32(u32::try_from(REQUEST_BYTES_MAX).unwrap_or(u32::MAX));
    put_reply(out, option, option_reply::INFO, &payload);
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(NBD_STRING_BYTES_MAX)]
}

/// The transmission flags of an export for a client that understands `chunks` of replies, and `payloads` of
/// BLOCK_STATUS.
pub fn transmission_flags(geometry: &Geometry, chunks: bool, payloads: bool) -> u16 {
    use transmission::*;
    let mut flags = HAS_FLAGS | SEND_FLUSH | SEND_FUA | SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
    flags |= CAN_MULTI_CONN | SEND_CACHE;
    if geometry.read_only {
        flags |= READ_ONLY;
    }
    if chunks {
        flags |= SEND_DF;
    }
    if payloads {
        flags |= BLOCK_STATUS_PAYLOAD;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announced_counts_and_lengths_beyond_the_data_are_malformed() {
        let mut data = Vec::new();
        data.put_u32(1);
        data.put(b"x");
        data.put_u32(u32::MAX);
        assert!(decode_meta(&data).is_err());
        assert!(decode_info(&data).is_err());
        assert!(decode_meta(&[0xff; 12]).is_err());
        let mut data = Vec::new();
        data.put_u32(0);
        data.put_u16(1);
        data.put_u16(info::BLOCK_SIZE);
        assert_eq!(decode_info(&data), Ok(InfoQuery { name: b"", wants: vec![info::BLOCK_SIZE] }));
        data.put(b"x");
        assert!(decode_info(&data).is_err());
    }

    #[test]
    fn contexts_are_selected_by_name_and_listed_by_namespace() {
        use MetaContext::{Allocation, Residence};
        assert_eq!(select_contexts(&[], true, &[]), [Allocation, Residence]);
        assert_eq!(select_contexts(&[], false, &[]), []);
        assert_eq!(select_contexts(&[b"varve:"], true, &[]), [Residence]);
        assert_eq!(select_contexts(&[b"base:"], false, &[]), []);
        let queries: &[&[u8]] = &[b"qemu:dirty", b"base:allocation", b"base:allocation"];
        assert_eq!(select_contexts(queries, false, &[]), [Allocation]);
        assert!(check_queries(&[b"allocation"]).is_err() && check_queries(queries).is_ok());
    }

    #[test]
    fn changes_are_selected_by_the_snapshot() {
        let (one, two) = (SnapshotId(1), SnapshotId(2));
        let changes = |since, position| MetaContext::Changes { since, position };
        let (name_of_two, unknown) = (changes(two, 0).name(), changes(SnapshotId(3), 0).name());
        let queries: &[&[u8]] = &[name_of_two.as_bytes(), b"qemu:dirty-bitmap:vs_x", unknown.as_bytes()];
        assert_eq!(snapshots_named(queries), [two, SnapshotId(3)]);
        assert_eq!(select_contexts(queries, false, &[two]), [changes(two, 0)]);
        assert_eq!(select_contexts(&[b"qemu:dirty-bitmap:"], true, &[one, two]), [changes(one, 0), changes(two, 1)]);
        for (query, all) in
            [(&b"qemu:"[..], true), (b"qemu:dirty-bitmap:", true), (b"base:", false), (b"qemu:x:", false)]
        {
            assert_eq!(names_all_snapshots(&[query], true), all);
            assert!(!names_all_snapshots(&[query], false));
        }
    }

    #[test]
    fn names_that_no_export_can_have_are_refused() {
        assert_eq!(export_name("caf\u{e9}".as_bytes()), Ok("caf\u{e9}"));
        for name in [&b"a\0b"[..], b"\xff\xfe", &[b'a'; 4097]] {
            assert!(export_name(name).is_err());
        }
    }
}
