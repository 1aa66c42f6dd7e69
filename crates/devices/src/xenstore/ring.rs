//! A guest's connection: bytes of its ring page to messages, and replies back.
//!
//! Replies keep the order of requests; watch events come between whole messages. Little is buffered: while replies wait for room in
//! the ring, no further request is read.

use core::mem::offset_of;
use std::collections::VecDeque;

use paravane_abi::{
    units::{DomId, MachAddr, Mfn, PAGE_SHIFT},
    xenstore::{Message, PAYLOAD_MAX, RING_BYTES, StoreRing, ring_error},
};
use paravane_memory::Memory;
use zerocopy::FromBytes;

use super::{request, store::Store};
use crate::byte_ring::{ByteRing, RingError, RingLayout};

#[expect(clippy::cast_possible_truncation, reason = "offsets in a page")]
const REQUESTS: RingLayout = RingLayout {
    data: offset_of!(StoreRing, req) as u32,
    size: RING_BYTES as u32,
    consumer: offset_of!(StoreRing, req_cons) as u32,
    producer: offset_of!(StoreRing, req_prod) as u32,
};
#[expect(clippy::cast_possible_truncation, reason = "offsets in a page")]
const REPLIES: RingLayout = RingLayout {
    data: offset_of!(StoreRing, rsp) as u32,
    size: RING_BYTES as u32,
    consumer: offset_of!(StoreRing, rsp_cons) as u32,
    producer: offset_of!(StoreRing, rsp_prod) as u32,
};

/// Replies that may wait before requests have to.
const WAITING: usize = 64 << 10;

/// A guest's connection to the store.
#[derive(Debug)]
pub struct StoreConnection {
    domain: DomId,
    page: Mfn,
    /// Bytes of a request that is not complete.
    incoming: Vec<u8>,
    /// Bytes of replies for which there was no room.
    outgoing: VecDeque<u8>,
    /// Set when the guest broke the protocol: nothing more is served.
    broken: bool,
}

impl StoreConnection {
    /// The connection of `domain` over the ring page `page`.
    pub fn new(domain: DomId, page: Mfn) -> Self {
        Self { domain, page, incoming: Vec::new(), outgoing: VecDeque::new(), broken: false }
    }

    /// Serves what the guest asked and sends what waits. Returns whether the guest is to be notified.
    ///
    /// # Errors
    ///
    /// [`RingError`] if the page cannot be reached. A guest that breaks the protocol is told so in the page, once, and
    /// served no more.
    pub fn serve(&mut self, store: &mut Store, memory: &Memory) -> Result<bool, RingError> {
        if self.broken {
            return Ok(false);
        }
        match self.exchange(store, memory) {
            Err(RingError::Indexes { .. }) => self.give_up(memory, ring_error::RING_INDEX),
            Ok(Progress::Nothing) => Ok(false),
            Ok(Progress::Some) => Ok(true),
            Ok(Progress::Nonsense) => self.give_up(memory, ring_error::PROTOCOL),
            Err(error) => Err(error),
        }
    }

    fn exchange(&mut self, store: &mut Store, memory: &Memory) -> Result<Progress, RingError> {
        let mut moved = 0;
        loop {
            let mut step = 0;
            if self.outgoing.len() < WAITING {
                step += ByteRing::new(memory, self.page, REQUESTS).take(&mut self.incoming, RING_BYTES)?;
                if !self.answer_complete_requests(store) {
                    return Ok(Progress::Nonsense);
                }
            }
            for event in store.take_events(self.domain) {
                self.outgoing.extend(request::event(&event));
            }
            step += self.send(memory)?;
            moved += step;
            if step == 0 {
                return Ok(if moved == 0 { Progress::Nothing } else { Progress::Some });
            }
        }
    }

    /// Answers each whole message in `incoming`; false if a header announces more than a message may have.
    fn answer_complete_requests(&mut self, store: &mut Store) -> bool {
        let mut start = 0;
        while let Ok((header, rest)) = Message::read_from_prefix(&self.incoming[start..]) {
            if header.len > PAYLOAD_MAX {
                return false;
            }
            let Some(payload) = rest.get(..header.len as usize) else { break };
            self.outgoing.extend(request::reply(store, self.domain, &header, payload));
            for event in store.take_events(self.domain) {
                self.outgoing.extend(request::event(&event));
            }
            start += size_of::<Message>() + payload.len();
        }
        self.incoming.drain(..start);
        true
    }

    fn send(&mut self, memory: &Memory) -> Result<usize, RingError> {
        let ring = ByteRing::new(memory, self.page, REPLIES);
        let sent = ring.give(self.outgoing.make_contiguous())?;
        self.outgoing.drain(..sent);
        Ok(sent)
    }

    fn give_up(&mut self, memory: &Memory, error: u32) -> Result<bool, RingError> {
        log::warn!(
            "domain {} broke its xenstore ring (error {error} in it), which is not served any more",
            self.domain
        );
        self.broken = true;
        let at = MachAddr(self.page.0 << PAGE_SHIFT | offset_of!(StoreRing, error) as u64);
        memory.store_u32(at, error)?;
        Ok(true)
    }
}

/// What came of an exchange.
enum Progress {
    Nothing,
    Some,
    /// The guest sent what is no message.
    Nonsense,
}

#[cfg(test)]
mod tests {
    use paravane_abi::xenstore::MessageType;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::xenstore::{Path, Permissions, Rights};

    const GUEST: DomId = DomId(1);
    const PAGE: Mfn = Mfn(8);

    /// The guest's side of the ring.
    struct Guest {
        memory: Memory,
        store: Store,
        connection: StoreConnection,
    }

    impl Guest {
        fn new() -> Self {
            let mut store = Store::new();
            let home = Permissions::new(DomId(0), Rights::NONE).with(GUEST, Rights::READ);
            store.provide(&Path::home(GUEST), b"", &home).unwrap();
            let own = Permissions::new(GUEST, Rights::NONE);
            store.provide(&Path::parse("data", GUEST).unwrap(), b"", &own).unwrap();
            Self {
                memory: Memory::new(PAGE, 1).unwrap(),
                store,
                connection: StoreConnection::new(GUEST, PAGE),
            }
        }

        /// Sends raw bytes, serving whenever the ring is full, and collects all replies.
        fn exchange(&mut self, mut bytes: &[u8]) -> Vec<u8> {
            // The guest produces where the daemon consumes, and the other way round.
            let mut replies = Vec::new();
            loop {
                let sent = ByteRing::new(&self.memory, PAGE, REQUESTS).give(bytes).unwrap();
                bytes = &bytes[sent..];
                self.connection.serve(&mut self.store, &self.memory).unwrap();
                let got = ByteRing::new(&self.memory, PAGE, REPLIES).take(&mut replies, usize::MAX).unwrap();
                if got == 0 && bytes.is_empty() {
                    return replies;
                }
            }
        }

        fn ask(&mut self, kind: MessageType, tx_id: u32, payload: &[u8]) -> (u32, Vec<u8>) {
            let len = u32::try_from(payload.len()).unwrap();
            let header = Message { kind: kind.number(), req_id: 7, tx_id, len };
            let reply = self.exchange(&[header.as_bytes(), payload].concat());
            let (header, payload) = Message::read_from_prefix(&reply).unwrap();
            (header.kind, payload[..header.len as usize].to_vec())
        }
    }

    #[test]
    fn each_request_has_its_reply() {
        let mut guest = Guest::new();
        for (kind, payload, reply_kind, reply) in [
            (MessageType::Write, &b"data/a\0hello"[..], MessageType::Write, &b"OK\0"[..]),
            (MessageType::Read, b"data/a\0", MessageType::Read, b"hello"),
            (MessageType::Read, b"data/b\0", MessageType::Error, b"ENOENT\0"),
            (MessageType::Read, b"data/a", MessageType::Error, b"EINVAL\0"),
            (MessageType::Mkdir, b"data/d\0", MessageType::Mkdir, b"OK\0"),
            (MessageType::Directory, b"data\0", MessageType::Directory, b"a\0d\0"),
            (MessageType::GetPerms, b"data\0", MessageType::GetPerms, b"n1\0"),
            (MessageType::SetPerms, b"data\0n1\0r0\0", MessageType::SetPerms, b"OK\0"),
            (MessageType::SetPerms, b"data\0n2\0", MessageType::Error, b"EPERM\0"),
            (MessageType::Rm, b"data/d\0", MessageType::Rm, b"OK\0"),
            (MessageType::GetDomainPath, b"5\0", MessageType::GetDomainPath, b"/local/domain/5\0"),
            (MessageType::IsDomainIntroduced, b"1\0", MessageType::IsDomainIntroduced, b"T\0"),
            (MessageType::IsDomainIntroduced, b"9\0", MessageType::IsDomainIntroduced, b"F\0"),
            (MessageType::Introduce, b"1\x002\x003\0", MessageType::Error, b"EACCES\0"),
            (MessageType::Control, b"help\0", MessageType::Error, b"EACCES\0"),
            (MessageType::TransactionEnd, b"T\0", MessageType::Error, b"ENOENT\0"),
            (MessageType::Watch, b"@releaseDomain\0t\0", MessageType::Error, b"EACCES\0"),
            (MessageType::ResetWatches, b"\0", MessageType::ResetWatches, b"OK\0"),
        ] {
            assert_eq!(
                guest.ask(kind, 0, payload),
                (reply_kind.number(), reply.to_vec()),
                "{kind:?} {payload:?}"
            );
        }
    }

    #[test]
    fn a_watch_answers_ok_before_its_first_event() {
        let mut guest = Guest::new();
        let payload = b"data\0token\0";
        let header = Message { kind: MessageType::Watch.number(), req_id: 1, tx_id: 0, len: 11 };
        let replies = guest.exchange(&[header.as_bytes(), payload].concat());
        let (first, rest) = Message::read_from_prefix(&replies).unwrap();
        assert_eq!((first.kind, &rest[..3]), (MessageType::Watch.number(), &b"OK\0"[..]));
        let (second, rest) = Message::read_from_prefix(&rest[3..]).unwrap();
        assert_eq!((second.kind, second.req_id), (MessageType::WatchEvent.number(), 0));
        assert_eq!(rest, payload);
    }

    #[test]
    fn a_directory_too_long_for_one_reply_comes_in_parts() {
        let mut guest = Guest::new();
        let names: Vec<String> = (0..400).map(|number| format!("a-rather-long-name-{number:04}")).collect();
        for name in &names {
            guest.ask(MessageType::Mkdir, 0, format!("data/{name}\0").as_bytes());
        }
        assert_eq!(guest.ask(MessageType::Directory, 0, b"data\0").1, b"E2BIG\0");
        let mut listed = Vec::new();
        loop {
            let (_, part) =
                guest.ask(MessageType::DirectoryPart, 0, format!("data\0{}\0", listed.len()).as_bytes());
            let start = part.iter().position(|&byte| byte == 0).unwrap() + 1;
            let part = &part[start..];
            if part.ends_with(b"\0\0") {
                listed.extend_from_slice(&part[..part.len() - 1]);
                break;
            }
            listed.extend_from_slice(part);
        }
        let listed: Vec<&[u8]> = listed[..listed.len() - 1].split(|&byte| byte == 0).collect();
        assert_eq!(listed, names.iter().map(String::as_bytes).collect::<Vec<_>>());
    }

    #[test]
    fn a_guest_that_breaks_the_protocol_is_told_and_served_no_more() {
        for (header_len, error) in [(PAYLOAD_MAX + 1, ring_error::PROTOCOL), (u32::MAX, ring_error::PROTOCOL)]
        {
            let mut guest = Guest::new();
            let header = Message { kind: 2, req_id: 0, tx_id: 0, len: header_len };
            assert_eq!(guest.exchange(header.as_bytes()), []);
            let at = MachAddr(PAGE.0 << PAGE_SHIFT | 2072);
            assert_eq!(guest.memory.load_u32(at).unwrap(), error);
            assert!(guest.connection.broken);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_or_refused_without_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut guest = Guest::new();
            let len = u32::try_from(bytes.len()).unwrap();
            for kind in MessageType::ALL {
                let header = Message { kind: kind.number(), req_id: 1, tx_id: 0, len };
                guest.exchange(&[header.as_bytes(), &bytes].concat());
            }
        }
    }
}
