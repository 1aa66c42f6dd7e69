//! The xenstore ring: whatever a guest writes into its page, each request gets one reply, in order, and a guest
//! that breaks the protocol is told so.
//!
//! The input begins with a byte of flags; what follows are the bytes that the guest puts into the ring, a
//! ring's worth at a time.

use std::mem::offset_of;

use paravane_abi::units::{DomId, MachAddr, Mfn, PAGE_SIZE};
use paravane_abi::xenstore::{Message, MessageType, PAYLOAD_MAX, RING_BYTES, StoreRing};
use paravane_devices::xenstore::{Store, StoreConnection};
use paravane_memory::Memory;
use zerocopy::FromBytes as _;

const PAGE: Mfn = Mfn(0x100);

/// Writes `data` into a ring and has it served.
pub fn check(data: &[u8]) {
    let Some((flags, bytes)) = data.split_first() else { return };
    let memory = Memory::new(PAGE, 1).expect("one frame can be had");
    let mut store = Store::new();
    let mut connection = StoreConnection::new(DomId(1), PAGE);
    if flags & 1 != 0 {
        // Indexes that run apart from the start.
        memory.store_u32(at(offset_of!(StoreRing, req_prod)), u32::MAX / 2).expect("the ring's page");
    }
    let mut replies = Vec::new();
    for piece in bytes.chunks(RING_BYTES) {
        let mut left = piece;
        while !left.is_empty() {
            left = &left[produce(&memory, left)..];
            let told = connection.serve(&mut store, &memory).expect("the page can be reached");
            replies.extend(consume(&memory));
            if !told {
                // Nothing moved: the connection is broken, or waits for more than was there.
                break;
            }
        }
    }
    while connection.serve(&mut store, &memory).expect("the page can be reached") {
        replies.extend(consume(&memory));
    }
    // A guest that broke the protocol is told so, and nothing more: its last reply may be cut short.
    let is_broken = index(&memory, offset_of!(StoreRing, error)) != 0;
    assert!(is_broken || flags & 1 == 0, "indexes that run apart are found");
    check_replies(&replies, bytes, is_broken);
}

fn at(offset: usize) -> MachAddr {
    MachAddr(PAGE.0 * PAGE_SIZE + offset as u64)
}

fn index(memory: &Memory, offset: usize) -> u32 {
    memory.load_u32(at(offset)).expect("the ring's page")
}

/// Puts bytes into the guest's half of the ring; returns how many fitted.
fn produce(memory: &Memory, bytes: &[u8]) -> usize {
    let (consumer, producer) =
        (index(memory, offset_of!(StoreRing, req_cons)), index(memory, offset_of!(StoreRing, req_prod)));
    let room = RING_BYTES.saturating_sub(producer.wrapping_sub(consumer) as usize);
    let count = room.min(bytes.len());
    for (step, byte) in (0_u32..).zip(&bytes[..count]) {
        let place = producer.wrapping_add(step) as usize % RING_BYTES;
        memory.store_u8(at(offset_of!(StoreRing, req) + place), *byte).expect("the ring's page");
    }
    let count_u32 = u32::try_from(count).expect("a ring is small");
    memory
        .store_u32(at(offset_of!(StoreRing, req_prod)), producer.wrapping_add(count_u32))
        .expect("the page");
    count
}

/// Takes all replies out of the ring.
fn consume(memory: &Memory) -> Vec<u8> {
    let (consumer, producer) =
        (index(memory, offset_of!(StoreRing, rsp_cons)), index(memory, offset_of!(StoreRing, rsp_prod)));
    let count = producer.wrapping_sub(consumer);
    assert!(count as usize <= RING_BYTES, "the store keeps its own index right");
    let byte = |step| {
        let place = consumer.wrapping_add(step) as usize % RING_BYTES;
        memory.load_u8(at(offset_of!(StoreRing, rsp) + place)).expect("the ring's page")
    };
    let bytes = (0..count).map(byte).collect();
    memory.store_u32(at(offset_of!(StoreRing, rsp_cons)), producer).expect("the ring's page");
    bytes
}

/// Each reply answers the next request, and is whole unless the ring broke.
fn check_replies(replies: &[u8], requests: &[u8], is_broken: bool) {
    let mut requested = messages(requests);
    for (reply, is_whole) in messages(replies) {
        assert!(reply.len <= PAYLOAD_MAX && (is_whole || is_broken), "a reply is a whole message");
        if MessageType::from_number(reply.kind) == Some(MessageType::WatchEvent) {
            continue;
        }
        let (request, is_whole) = requested.next().expect("a reply answers a request");
        assert!(is_whole, "a request is answered when all of it is there");
        assert_eq!((reply.req_id, reply.tx_id), (request.req_id, request.tx_id));
    }
    if !is_broken {
        assert!(requested.all(|(_, is_whole)| !is_whole), "every whole request is answered");
    }
}

/// The headers of the messages in `bytes`, and whether the payload of each is all there.
fn messages(bytes: &[u8]) -> impl Iterator<Item = (Message, bool)> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (header, payload) = Message::read_from_prefix(rest).ok()?;
        let len = header.len as usize;
        rest = payload.get(len..).unwrap_or_default();
        Some((header, payload.len() >= len))
    })
}
