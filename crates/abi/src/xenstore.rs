//! Xenstore's wire: the ring page of a domain and the messages that travel in it.
//!
//! Requests and replies are byte streams of messages, each a [`Message`] header and up to [`PAYLOAD_MAX`]
//! bytes. A reply has the request's type and number, or type [`MessageType::Error`] with the error's *name*
//! as text. A [`MessageType::WatchEvent`] comes unasked, between two other messages.
//!
//! Source: `xen/include/public/io/xs_wire.h`; payloads from `docs/misc/xenstore.txt`.

use serde::Serialize;

use crate::layout::{Ty, abi_struct};
use crate::numbered;

/// Bytes in each direction's ring; an index's place is its value modulo this.
pub const RING_BYTES: usize = 1024;

/// The longest payload of a message, in bytes.
pub const PAYLOAD_MAX: u32 = 4096;

/// The longest absolute path, in bytes without a NUL.
pub const ABSOLUTE_PATH_MAX: usize = 3072;

/// The longest relative path, in bytes without a NUL.
pub const RELATIVE_PATH_MAX: usize = 2048;

/// Bits of `StoreRing::server_features`.
pub mod server_features {
    /// The ring can be reconnected.
    pub const RECONNECTION: u32 = 1;
    /// The `error` field is used.
    pub const ERROR: u32 = 2;
    /// `WATCH` takes a depth.
    pub const WATCH_DEPTH: u32 = 4;
    /// Permissions may name any domain.
    pub const DOMID_ANY: u32 = 8;
}

/// Values of `StoreRing::connection`.
pub mod connection {
    /// The steady state.
    pub const CONNECTED: u32 = 0;
    /// A reconnection is under way.
    pub const RECONNECT: u32 = 1;
}

/// Values of `StoreRing::error`.
pub mod ring_error {
    /// None.
    pub const NONE: u32 = 0;
    /// Communication failed.
    pub const COMMUNICATION: u32 = 1;
    /// A ring index is invalid.
    pub const RING_INDEX: u32 = 2;
    /// A message is invalid.
    pub const PROTOCOL: u32 = 3;
}

abi_struct! {
    /// The header of a message.
    pub struct Message = "xsd_sockmsg", "xen/include/public/io/xs_wire.h", 16 / 16;
    [0 / 0] kind: u32 = Ty::U32, "What the message is (C name: type).";
    [4 / 4] req_id: u32 = Ty::U32, "The requester's number, repeated in the reply; 0 in a watch event.";
    [8 / 8] tx_id: u32 = Ty::U32, "The transaction; 0 if none.";
    [12 / 12] len: u32 = Ty::U32, "Bytes of payload that follow.";
}

abi_struct! {
    /// The ring page of a domain, of which the rest is unused. All zeros is a ring ready for use.
    pub struct StoreRing = "xenstore_domain_interface", "xen/include/public/io/xs_wire.h", 2080 / 2080;
    [0 / 0] req: [u8; 1024] = Ty::Array(&Ty::Char, 1024, 1024), "Bytes from the guest.";
    [1024 / 1024] rsp: [u8; 1024] = Ty::Array(&Ty::Char, 1024, 1024), "Bytes to the guest.";
    [2048 / 2048] req_cons: u32 = Ty::U32, "What the daemon has read of req.";
    [2052 / 2052] req_prod: u32 = Ty::U32, "What the guest has written to req.";
    [2056 / 2056] rsp_cons: u32 = Ty::U32, "What the guest has read of rsp.";
    [2060 / 2060] rsp_prod: u32 = Ty::U32, "What the daemon has written to rsp.";
    [2064 / 2064] server_features: u32 = Ty::U32, "What the daemon can do, as bits.";
    [2068 / 2068] connection: u32 = Ty::U32, "0 connected, 1 while reconnecting.";
    [2072 / 2072] error: u32 = Ty::U32, "Why the daemon gave the ring up; 0 if it did not.";
    [2076 / 2076] evtchn_port: u32 = Ty::Port, "Port for the daemon to raise, for domains that Xen itself \
                                                built.";
}

/// Who may send a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sender {
    /// Every domain.
    AnyDomain,
    /// The control domain.
    Privileged,
    /// Only the daemon sends it.
    Daemon,
}

/// The columns of the message table beyond number, name and meaning. `\0` stands for a NUL byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MessageFacts {
    /// Who may send it.
    pub sender: Sender,
    /// The payload of the request; empty if nobody requests it.
    pub request: &'static str,
    /// The payload of the reply.
    pub reply: &'static str,
}

use Sender::{AnyDomain, Daemon, Privileged};

numbered! {
    /// The type of a message.
    pub enum MessageType(u32), "xen/include/public/io/xs_wire.h": MessageFacts;
    0 Control "CONTROL" "Controls the daemon." {
        sender: Privileged, request: r"command\0", reply: r"text\0"
    }
    1 Directory "DIRECTORY" "Lists the children of a node; E2BIG if they exceed a payload." {
        sender: AnyDomain, request: r"path\0", reply: r"name\0…"
    }
    2 Read "READ" "Reads the value of a node." {
        sender: AnyDomain, request: r"path\0", reply: "value"
    }
    3 GetPerms "GET_PERMS" "Lists who may use a node; the first is the owner and the default." {
        sender: AnyDomain, request: r"path\0", reply: r"letter and domid\0…"
    }
    4 Watch "WATCH" "Asks for events about a node and those below; one comes at once." {
        sender: AnyDomain, request: r"path\0token\0", reply: r"OK\0"
    }
    5 Unwatch "UNWATCH" "Ends a watch; ENOENT if there is none." {
        sender: AnyDomain, request: r"path\0token\0", reply: r"OK\0"
    }
    6 TransactionStart "TRANSACTION_START" "Begins a transaction on a snapshot." {
        sender: AnyDomain, request: r"\0", reply: r"decimal id\0"
    }
    7 TransactionEnd "TRANSACTION_END" "Commits or abandons a transaction; EAGAIN if it conflicts." {
        sender: AnyDomain, request: r"T\0 or F\0", reply: r"OK\0"
    }
    8 Introduce "INTRODUCE" "Tells the daemon of a new domain's ring." {
        sender: Privileged, request: r"domid\0mfn\0port\0", reply: r"OK\0"
    }
    9 Release "RELEASE" "Tells the daemon that a domain has gone." {
        sender: Privileged, request: r"domid\0", reply: r"OK\0"
    }
    10 GetDomainPath "GET_DOMAIN_PATH" "Gives the home of a domain's keys." {
        sender: AnyDomain, request: r"domid\0", reply: r"path\0"
    }
    11 Write "WRITE" "Sets the value of a node, creating it and its parents." {
        sender: AnyDomain, request: r"path\0value", reply: r"OK\0"
    }
    12 Mkdir "MKDIR" "Creates a node; an existing one is fine." {
        sender: AnyDomain, request: r"path\0", reply: r"OK\0"
    }
    13 Rm "RM" "Removes a node and those below; a missing one is fine if its parent exists." {
        sender: AnyDomain, request: r"path\0", reply: r"OK\0"
    }
    14 SetPerms "SET_PERMS" "Sets who may use a node." {
        sender: AnyDomain, request: r"path\0letter and domid\0…", reply: r"OK\0"
    }
    15 WatchEvent "WATCH_EVENT" "Tells that a watched node may have changed." {
        sender: Daemon, request: "", reply: r"path\0token\0"
    }
    16 Error "ERROR" "Tells that a request failed, by the name of the error." {
        sender: Daemon, request: "", reply: r"errno name\0"
    }
    17 IsDomainIntroduced "IS_DOMAIN_INTRODUCED" "Tells whether a domain has a ring." {
        sender: AnyDomain, request: r"domid\0", reply: r"T\0 or F\0"
    }
    18 Resume "RESUME" "Tells the daemon that a domain has resumed." {
        sender: Privileged, request: r"domid\0", reply: r"OK\0"
    }
    19 SetTarget "SET_TARGET" "Lets a domain act for another." {
        sender: Privileged, request: r"domid\0target\0", reply: r"OK\0"
    }
    21 ResetWatches "RESET_WATCHES" "Ends all watches and transactions of the domain." {
        sender: AnyDomain, request: r"\0", reply: r"OK\0"
    }
    22 DirectoryPart "DIRECTORY_PART" "Lists part of a node's children, from an offset." {
        sender: AnyDomain, request: r"path\0offset\0", reply: r"generation\0name\0…"
    }
    23 GetFeature "GET_FEATURE" "Asks which features the own ring can show; of another domain, for the \
                                 control domain." {
        sender: AnyDomain, request: r"[domid\0]", reply: r"bits\0"
    }
    24 SetFeature "SET_FEATURE" "Sets which features a domain's ring shows." {
        sender: Privileged, request: r"domid\0bits\0", reply: r"OK\0"
    }
    25 GetQuota "GET_QUOTA" "Asks for limits." {
        sender: Privileged, request: r"[[domid\0]quota\0]", reply: r"value\0"
    }
    26 SetQuota "SET_QUOTA" "Sets a limit." {
        sender: Privileged, request: r"[domid\0]quota\0value\0", reply: r"OK\0"
    }
}

/// The errors that a reply of type [`MessageType::Error`] may name, in the order of Xen's header.
///
/// Linux takes any other name as `EINVAL`.
pub const ERROR_NAMES: [&str; 16] = [
    "EINVAL",
    "EACCES",
    "EEXIST",
    "EISDIR",
    "ENOENT",
    "ENOMEM",
    "ENOSPC",
    "EIO",
    "ENOTEMPTY",
    "ENOSYS",
    "EROFS",
    "EBUSY",
    "EAGAIN",
    "EISCONN",
    "E2BIG",
    "EPERM",
];

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::errno::Errno;
    use crate::table::assert_well_formed;

    #[test]
    fn message_types_read_back_around_the_removed_one() {
        assert_well_formed::<MessageType>();
        assert_eq!(MessageType::from_number(20), None);
    }

    #[test]
    fn only_the_daemon_sends_what_has_no_request() {
        for &message in MessageType::ALL {
            let facts = message.facts();
            assert_eq!(facts.request.is_empty(), facts.sender == Daemon, "{message}");
            assert!(!facts.reply.is_empty(), "{message}");
        }
    }

    #[test]
    fn error_names_are_xens() {
        for name in ERROR_NAMES {
            assert!(Errno::from_symbol(name).is_some(), "{name}");
        }
    }

    #[test]
    fn a_ring_of_zeros_is_connected_and_empty() {
        let ring = StoreRing::new_zeroed();
        assert_eq!((ring.req.len(), ring.rsp.len()), (RING_BYTES, RING_BYTES));
        assert_eq!((ring.connection, ring.error), (connection::CONNECTED, ring_error::NONE));
        assert_eq!(ring.req_prod, ring.req_cons);
    }
}
