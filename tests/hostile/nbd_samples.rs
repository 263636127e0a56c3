//! Good requests to the two servers.

use varve::nbd::protocol::{OPTION_MAGIC, Put, RequestHead, Style, command, command_flag, encode_request, option};

/// The data of INFO and GO.
fn info_data(name: &str, wants: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    data.put_u32(name.len() as u32);
    data.put(name.as_bytes());
    data.put_u16(wants.len() as u16);
    wants.iter().for_each(|&want| data.put_u16(want));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    data.put_u32(name.len() as u32);
    data.put(name.as_bytes());
    data.put_u32(queries.len() as u32);
    for query in queries {
        data.put_u32(query.len() as u32);
        data.put(query.as_bytes());
    }
    data
}

const QUERIES: &[&str] = &["base:", "base:allocation", "varve:residence", "qemu:dirty-bitmap:vs_0000000000009", "x"];

pub fn options() -> Vec<Vec<u8>> {
    vec![info_data("disk", &[0, 1, 2, 3]), info_data("", &[]), meta_data("disk", QUERIES), meta_data("disk", &[])]
}

/// One of each command.
fn stream(style: Style) -> Vec<u8> {
    let payload_flag = if style == Style::Extended { command_flag::PAYLOAD_LEN } else { 0 };
    let requests: &[(u16, u16, u64, u64, usize)] = &[
        (command::WRITE, payload_flag, 4096, 512, 512),
        (command::READ, 0, 4000, 1000, 0),
        (command::FLUSH, 0, 0, 0, 0),
        (command::TRIM, 0, 8192, 65536, 0),
        (command::WRITE_ZEROES, command_flag::FUA, 100, 5000, 0),
        (command::CACHE, 0, 0, 4096, 0),
        (command::BLOCK_STATUS, command_flag::REQ_ONE, 0, 65536, 0),
        (command::WRITE, command_flag::FUA | payload_flag, 0, 64, 64),
        (command::DISC, 0, 0, 0, 0),
    ];
    let mut bytes = Vec::new();
    for (cookie, &(command, flags, offset, length, payload)) in (1..).zip(requests) {
        encode_request(style, &RequestHead { flags, command, cookie, offset, length }, &mut bytes);
        bytes.resize(bytes.len() + payload, 7);
    }
    bytes
}

pub fn requests() -> Vec<Vec<u8>> {
    [Style::Simple, Style::Structured, Style::Extended].map(stream).into()
}

fn put_option(out: &mut Vec<u8>, option: u32, data: &[u8]) {
    out.put_u64(OPTION_MAGIC);
    out.put_u32(option);
    out.put_u32(data.len() as u32);
    out.put(data);
}

/// All that a client sends, from its flags on.
pub fn sessions() -> Vec<Vec<u8>> {
    let mut sessions = Vec::new();
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let mut bytes = vec![0, 0, 0, 3];
        match style {
            Style::Simple => {}
            Style::Structured => put_option(&mut bytes, option::STRUCTURED_REPLY, &[]),
            Style::Extended => put_option(&mut bytes, option::EXTENDED_HEADERS, &[]),
        }
        put_option(&mut bytes, option::LIST, &[]);
        put_option(&mut bytes, option::INFO, &info_data("disk", &[0, 3]));
        if style != Style::Simple {
            put_option(&mut bytes, option::LIST_META_CONTEXT, &meta_data("disk", &[]));
            put_option(&mut bytes, option::SET_META_CONTEXT, &meta_data("disk", QUERIES));
        }
        put_option(&mut bytes, option::GO, &info_data("disk", &[]));
        bytes.extend(stream(style));
        sessions.push(bytes);
    }
    let mut old = vec![0, 0, 0, 1];
    put_option(&mut old, option::EXPORT_NAME, b"read-only");
    old.extend(stream(Style::Simple));
    let mut aborted = vec![0, 0, 0, 3];
    put_option(&mut aborted, option::STARTTLS, &[]);
    put_option(&mut aborted, option::ABORT, &[]);
    sessions.extend([old, aborted]);
    sessions
}

/// Requests to the control socket, as the body `control_request` takes them.
pub fn control_requests() -> Vec<Vec<u8>> {
    let volume = "/v1/volumes/vol_0000000000007";
    let requests = [
        "GET /v1/status\n".to_owned(),
        "GET /v1/volumes\n".to_owned(),
        format!("GET {volume}\n"),
        format!("POST {volume}/attach\n{{\"takeover\":true}}"),
        format!("POST {volume}/detach\n{{\"force\":false}}"),
        format!("POST {volume}/sync\n"),
        format!(
            "PATCH {volume}\n{{\"durability\":\"store\",\"size\":1073741824,\"schedule\":{{\"interval_seconds\":60}}}}"
        ),
        format!("POST {volume}/snapshots\n{{\"name\":\"nightly\",\"retention_seconds\":3600}}"),
        format!("POST {volume}/forks\n{{\"name\":\"f\",\"count\":2}}"),
        "\0GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".to_owned(),
        format!(
            "\0POST {volume}/attach HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{{\"a\":\r\n0\r\n\r\n"
        ),
    ];
    requests.into_iter().map(String::into_bytes).collect()
}
