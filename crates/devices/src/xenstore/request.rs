//! One request to one reply.

use paravane_abi::{
    errno::Errno,
    units::DomId,
    xenstore::{Message, MessageType, PAYLOAD_MAX},
};
use zerocopy::IntoBytes;

use super::{
    path::Path,
    store::{Fault, Store, WatchEvent},
    tree::{Permission, Permissions},
};

/// The bytes of the reply to a request of `domain`'s.
pub(super) fn reply(store: &mut Store, domain: DomId, header: &Message, payload: &[u8]) -> Vec<u8> {
    let answer = match MessageType::from_number(header.kind) {
        Some(kind) => answer(store, domain, kind, header.tx_id, payload),
        None => Err(Errno::Enosys),
    };
    let answer = answer
        .and_then(|answer| if answer.len() > PAYLOAD_MAX as usize { Err(Errno::E2big) } else { Ok(answer) });
    match answer {
        Ok(answer) => message(header.kind, header.req_id, header.tx_id, &answer),
        Err(fault) => {
            let name = format!("{}\0", fault.name());
            message(MessageType::Error.number(), header.req_id, header.tx_id, name.as_bytes())
        }
    }
}

/// The bytes of a watch event.
pub(super) fn event(event: &WatchEvent) -> Vec<u8> {
    let payload = format!("{}\0{}\0", event.path, event.token);
    message(MessageType::WatchEvent.number(), 0, 0, payload.as_bytes())
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "payloads have at most 4096 bytes, events two such strings"
)]
fn message(kind: u32, req_id: u32, tx_id: u32, payload: &[u8]) -> Vec<u8> {
    let header = Message { kind, req_id, tx_id, len: payload.len() as u32 };
    [header.as_bytes(), payload].concat()
}

const OK: &[u8] = b"OK\0";

fn answer(
    store: &mut Store,
    domain: DomId,
    kind: MessageType,
    transaction: u32,
    payload: &[u8],
) -> Result<Vec<u8>, Fault> {
    let done = |result: Result<(), Fault>| result.map(|()| OK.to_vec());
    match kind {
        MessageType::Read => store.read(domain, transaction, &only_path(payload, domain)?),
        MessageType::Directory => {
            Ok(joined(&store.directory(domain, transaction, &only_path(payload, domain)?)?))
        }
        MessageType::DirectoryPart => directory_part(store, domain, transaction, payload),
        MessageType::GetPerms => {
            let (permissions, _) = store.permissions(domain, transaction, &only_path(payload, domain)?)?;
            Ok(permissions.to_wire())
        }
        MessageType::SetPerms => done(set_permissions(store, domain, transaction, payload)),
        MessageType::Write => {
            let end = payload.iter().position(|&byte| byte == 0).ok_or(Errno::Einval)?;
            let path = parse(text(&payload[..end])?, domain)?;
            done(store.write(domain, transaction, &path, &payload[end + 1..]))
        }
        MessageType::Mkdir => done(store.mkdir(domain, transaction, &only_path(payload, domain)?)),
        MessageType::Rm => done(store.remove(domain, transaction, &only_path(payload, domain)?)),
        MessageType::Watch => {
            let [path, token] = two(payload)?;
            if path.starts_with('@') {
                // Domains coming and going are the control domain's affair.
                return Err(Errno::Eacces);
            }
            done(store.watch(domain, parse(path, domain)?, !path.starts_with('/'), token))
        }
        MessageType::Unwatch => {
            let [path, token] = two(payload)?;
            done(store.unwatch(domain, &parse(path, domain)?, token))
        }
        MessageType::ResetWatches => {
            store.reset(domain);
            Ok(OK.to_vec())
        }
        MessageType::TransactionStart => {
            if transaction != 0 {
                return Err(Errno::Ebusy);
            }
            store.start_transaction(domain).map(|id| format!("{id}\0").into_bytes())
        }
        MessageType::TransactionEnd => {
            let commit = match strings(payload)?.as_slice() {
                ["T"] => true,
                ["F"] => false,
                _ => return Err(Errno::Einval),
            };
            done(store.end_transaction(domain, transaction, commit))
        }
        MessageType::GetDomainPath => Ok(format!("{}\0", Path::home(domain_number(payload)?)).into_bytes()),
        MessageType::IsDomainIntroduced => {
            let known = [DomId(0), domain].contains(&domain_number(payload)?);
            Ok(if known { b"T\0".to_vec() } else { b"F\0".to_vec() })
        }
        MessageType::Control
        | MessageType::Introduce
        | MessageType::Release
        | MessageType::Resume
        | MessageType::SetTarget => Err(Errno::Eacces),
        // Only the daemon sends the first two; the others are newer and optional.
        MessageType::WatchEvent
        | MessageType::Error
        | MessageType::GetFeature
        | MessageType::SetFeature
        | MessageType::GetQuota
        | MessageType::SetQuota => Err(Errno::Enosys),
    }
}

fn set_permissions(store: &mut Store, domain: DomId, transaction: u32, payload: &[u8]) -> Result<(), Fault> {
    let strings = strings(payload)?;
    let (path, rest) = strings.split_first().ok_or(Errno::Einval)?;
    let list = rest.iter().map(|text| Permission::parse(text)).collect::<Option<Vec<_>>>();
    let permissions = list.and_then(Permissions::from_list).ok_or(Errno::Einval)?;
    store.set_permissions(domain, transaction, &parse(path, domain)?, &permissions)
}

/// The part of a long directory from an offset on, behind the directory's generation.
fn directory_part(
    store: &mut Store,
    domain: DomId,
    transaction: u32,
    payload: &[u8],
) -> Result<Vec<u8>, Fault> {
    const ROOM: usize = PAYLOAD_MAX as usize;
    let [path, offset] = two(payload)?;
    let (path, offset) = (parse(path, domain)?, offset.parse::<usize>().map_err(|_| Errno::Einval)?);
    let (_, generation) = store.permissions(domain, transaction, &path)?;
    let names = joined(&store.directory(domain, transaction, &path)?);
    let mut reply = format!("{generation}\0").into_bytes();
    let rest = names.get(offset..).ok_or(Errno::Einval)?;
    let room = ROOM - reply.len() - 1;
    if rest.len() < room {
        reply.extend_from_slice(rest);
        // An empty name ends the last part.
        reply.push(0);
    } else {
        let end = rest[..room].iter().rposition(|&byte| byte == 0).map_or(0, |last| last + 1);
        reply.extend_from_slice(&rest[..end]);
    }
    Ok(reply)
}

fn joined(names: &[String]) -> Vec<u8> {
    names.iter().flat_map(|name| name.bytes().chain([0])).collect()
}

fn text(bytes: &[u8]) -> Result<&str, Fault> {
    std::str::from_utf8(bytes).map_err(|_| Errno::Einval)
}

/// The NUL-terminated strings of a payload.
fn strings(payload: &[u8]) -> Result<Vec<&str>, Fault> {
    let body = payload.strip_suffix(&[0]).ok_or(Errno::Einval)?;
    body.split(|&byte| byte == 0).map(text).collect()
}

fn two(payload: &[u8]) -> Result<[&str; 2], Fault> {
    strings(payload)?.try_into().map_err(|_| Errno::Einval)
}

fn only_path(payload: &[u8], domain: DomId) -> Result<Path, Fault> {
    match strings(payload)?.as_slice() {
        [path] => parse(path, domain),
        _ => Err(Errno::Einval),
    }
}

fn parse(path: &str, domain: DomId) -> Result<Path, Fault> {
    Path::parse(path, domain).map_err(|_| Errno::Einval)
}

fn domain_number(payload: &[u8]) -> Result<DomId, Fault> {
    match strings(payload)?.as_slice() {
        [number] => number.parse().map(DomId).map_err(|_| Errno::Einval),
        _ => Err(Errno::Einval),
    }
}
