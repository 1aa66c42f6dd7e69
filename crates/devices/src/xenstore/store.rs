//! The store: the tree, transactions on it, and watches.
//!
//! A transaction works on a copy of the tree and remembers which nodes it looked at, with their generations. It commits if none of
//! them has changed since; then its changes are made again, in order, on the real tree. Otherwise it fails with
//! `EAGAIN` and the guest starts over. Adding or removing a child changes the parent's generation, so a transaction that
//! listed a directory conflicts with one that added to it.

use std::collections::{BTreeMap, VecDeque};

use paravane_abi::{errno::Errno, units::DomId};

use super::{
    path::Path,
    tree::{CONTROL, Permissions, Rights, Tree},
};

/// The error that a request fails with; the guest is told its name.
pub type Fault = Errno;

/// Limits of a guest, those of xenstored by default.
mod limit {
    /// Nodes it may own.
    pub(super) const NODES: usize = 1000;
    /// Bytes of one value.
    pub(super) const VALUE: usize = 2048;
    /// Watches.
    pub(super) const WATCHES: usize = 128;
    /// Transactions at the same time.
    pub(super) const TRANSACTIONS: usize = 10;
    /// Changes in one transaction.
    pub(super) const CHANGES: usize = 4096;
    /// Events not yet fetched; more are dropped, as the guest does not read them.
    pub(super) const EVENTS: usize = 4096;
}

/// A change that a watch saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchEvent {
    /// The node, in the form in which the watch was registered.
    pub path: String,
    /// The watch's token.
    pub token: String,
}

/// A transaction's number, 0 for none.
pub(super) type Transaction = u32;

#[derive(Clone, Debug)]
enum Change {
    Write(Path, Vec<u8>),
    Mkdir(Path),
    Remove(Path),
    SetPermissions(Path, Permissions),
}

#[derive(Debug)]
struct Snapshot {
    tree: Tree,
    /// Nodes looked at, with their generations at the start; `None` for a missing one.
    seen: BTreeMap<Path, Option<u64>>,
    changes: Vec<Change>,
}

#[derive(Debug)]
struct Watch {
    path: Path,
    token: String,
    /// The path as registered; relative ones are reported relative.
    relative: bool,
}

#[derive(Debug, Default)]
struct Connection {
    watches: Vec<Watch>,
    transactions: BTreeMap<Transaction, Snapshot>,
    last_transaction: Transaction,
    events: VecDeque<WatchEvent>,
}

/// The store. Domains are named by number; domain 0 may do everything.
#[derive(Debug)]
pub struct Store {
    tree: Tree,
    connections: BTreeMap<DomId, Connection>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl Store {
    /// A store with nothing but its root.
    pub fn new() -> Self {
        Self { tree: Tree::new(), connections: BTreeMap::new() }
    }

    /// Sets a value outside any transaction, as the control domain: what a toolstack does.
    ///
    /// # Errors
    ///
    /// None occur for the control domain; the result is that of any write.
    pub fn provide(&mut self, path: &Path, value: &[u8], permissions: &Permissions) -> Result<(), Fault> {
        self.write(CONTROL, 0, path, value)?;
        self.set_permissions(CONTROL, 0, path, permissions)
    }

    /// The value of a node.
    ///
    /// # Errors
    ///
    /// `ENOENT`, `EACCES`, `EINVAL` for an unknown transaction.
    pub fn read(&mut self, domain: DomId, transaction: u32, path: &Path) -> Result<Vec<u8>, Fault> {
        let tree = self.view(domain, transaction, path)?;
        Ok(tree.check(path, domain, Rights::READ)?.value.clone())
    }

    /// The names of a node's children.
    ///
    /// # Errors
    ///
    /// As [`Store::read`].
    pub fn directory(&mut self, domain: DomId, transaction: u32, path: &Path) -> Result<Vec<String>, Fault> {
        let tree = self.view(domain, transaction, path)?;
        Ok(tree.check(path, domain, Rights::READ)?.children.keys().cloned().collect())
    }

    /// A node's permissions, and its generation.
    ///
    /// # Errors
    ///
    /// As [`Store::read`].
    pub fn permissions(
        &mut self,
        domain: DomId,
        transaction: u32,
        path: &Path,
    ) -> Result<(Permissions, u64), Fault> {
        let tree = self.view(domain, transaction, path)?;
        let node = tree.check(path, domain, Rights::READ)?;
        Ok((node.permissions.clone(), node.generation))
    }

    /// Sets a value, creating the node and its parents.
    ///
    /// # Errors
    ///
    /// `EACCES`, `ENOSPC` beyond the domain's limits, `EINVAL` for an unknown transaction.
    pub fn write(&mut self, domain: DomId, transaction: u32, path: &Path, value: &[u8]) -> Result<(), Fault> {
        if domain != CONTROL && value.len() > limit::VALUE {
            return Err(Errno::Enospc);
        }
        self.prepare_creation(domain, transaction, path)?;
        self.apply(domain, transaction, Change::Write(path.clone(), value.to_owned()))
    }

    /// Creates an empty node; an existing one stays as it is.
    ///
    /// # Errors
    ///
    /// As [`Store::write`].
    pub fn mkdir(&mut self, domain: DomId, transaction: u32, path: &Path) -> Result<(), Fault> {
        if self.prepare_creation(domain, transaction, path)? {
            self.apply(domain, transaction, Change::Mkdir(path.clone()))?;
        }
        Ok(())
    }

    /// Removes a node and all below. A missing one is fine if its parent exists.
    ///
    /// # Errors
    ///
    /// `EINVAL` for the root, `EACCES`, `ENOENT` if the parent is missing too.
    pub fn remove(&mut self, domain: DomId, transaction: u32, path: &Path) -> Result<(), Fault> {
        let parent = path.parent().ok_or(Errno::Einval)?;
        self.view(domain, transaction, &parent)?;
        let tree = self.view(domain, transaction, path)?;
        match tree.check(path, domain, Rights { read: false, write: true }) {
            Ok(_) => self.apply(domain, transaction, Change::Remove(path.clone())),
            Err(Errno::Enoent) if tree.find(&parent).is_some() => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Sets a node's permissions; only its owner may, and may not give it away.
    ///
    /// # Errors
    ///
    /// `ENOENT`, `EACCES`, `EPERM` for a change of owner.
    pub fn set_permissions(
        &mut self,
        domain: DomId,
        transaction: u32,
        path: &Path,
        permissions: &Permissions,
    ) -> Result<(), Fault> {
        let tree = self.view(domain, transaction, path)?;
        let owner = tree.check(path, domain, Rights::NONE)?.permissions.owner();
        if domain != CONTROL && owner != domain {
            return Err(Errno::Eacces);
        }
        if domain != CONTROL && permissions.owner() != owner {
            return Err(Errno::Eperm);
        }
        self.apply(domain, transaction, Change::SetPermissions(path.clone(), permissions.clone()))
    }

    /// Watches a node and all below; one event comes at once. `relative` says how the path was written.
    ///
    /// # Errors
    ///
    /// `EEXIST` for the same path and token, `E2BIG` for too many.
    pub fn watch(&mut self, domain: DomId, path: Path, relative: bool, token: &str) -> Result<(), Fault> {
        let connection = self.connections.entry(domain).or_default();
        if connection.watches.iter().any(|watch| watch.path == path && watch.token == token) {
            return Err(Errno::Eexist);
        }
        if domain != CONTROL && connection.watches.len() >= limit::WATCHES {
            return Err(Errno::E2big);
        }
        let watch = Watch { path, token: token.to_owned(), relative };
        push_event(&mut connection.events, watch.event(domain, watch.path.as_str()));
        connection.watches.push(watch);
        Ok(())
    }

    /// Ends a watch.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is none.
    pub fn unwatch(&mut self, domain: DomId, path: &Path, token: &str) -> Result<(), Fault> {
        let watches = &mut self.connections.entry(domain).or_default().watches;
        let found = watches.iter().position(|watch| watch.path == *path && watch.token == token);
        watches.remove(found.ok_or(Errno::Enoent)?);
        Ok(())
    }

    /// Ends all watches and transactions of a domain (`RESET_WATCHES`).
    pub fn reset(&mut self, domain: DomId) {
        let connection = self.connections.entry(domain).or_default();
        connection.watches.clear();
        connection.transactions.clear();
    }

    /// Starts a transaction.
    ///
    /// # Errors
    ///
    /// `ENOSPC` for too many at a time.
    pub fn start_transaction(&mut self, domain: DomId) -> Result<u32, Fault> {
        let connection = self.connections.entry(domain).or_default();
        if domain != CONTROL && connection.transactions.len() >= limit::TRANSACTIONS {
            return Err(Errno::Enospc);
        }
        let id = loop {
            connection.last_transaction = connection.last_transaction.wrapping_add(1);
            let id = connection.last_transaction;
            if id != 0 && !connection.transactions.contains_key(&id) {
                break id;
            }
        };
        let snapshot = Snapshot { tree: self.tree.clone(), seen: BTreeMap::new(), changes: Vec::new() };
        connection.transactions.insert(id, snapshot);
        Ok(id)
    }

    /// Ends a transaction, making its changes if `commit`.
    ///
    /// # Errors
    ///
    /// `ENOENT` for an unknown one, `EAGAIN` if something it looked at has changed.
    pub fn end_transaction(&mut self, domain: DomId, transaction: u32, commit: bool) -> Result<(), Fault> {
        let connection = self.connections.entry(domain).or_default();
        let snapshot = connection.transactions.remove(&transaction).ok_or(Errno::Enoent)?;
        if !commit {
            return Ok(());
        }
        if snapshot.seen.iter().any(|(path, generation)| self.tree.generation_of(path) != *generation) {
            return Err(Errno::Eagain);
        }
        for change in snapshot.changes {
            self.apply(domain, 0, change)?;
        }
        Ok(())
    }

    /// The events for a domain since the last call.
    pub fn take_events(&mut self, domain: DomId) -> Vec<WatchEvent> {
        self.connections
            .get_mut(&domain)
            .map(|connection| connection.events.drain(..).collect())
            .unwrap_or_default()
    }

    /// The tree that a transaction sees, after remembering that it looked at `path`.
    fn view(&mut self, domain: DomId, transaction: u32, path: &Path) -> Result<&Tree, Fault> {
        if transaction == 0 {
            return Ok(&self.tree);
        }
        let snapshot = self.snapshot(domain, transaction)?;
        if !snapshot.seen.contains_key(path) {
            let generation = snapshot.tree.generation_of(path);
            snapshot.seen.insert(path.clone(), generation);
        }
        Ok(&snapshot.tree)
    }

    fn snapshot(&mut self, domain: DomId, transaction: u32) -> Result<&mut Snapshot, Fault> {
        let connection = self.connections.entry(domain).or_default();
        connection.transactions.get_mut(&transaction).ok_or(Errno::Enoent)
    }

    /// Checks that `domain` may write `path`, or create it. Returns whether it has to be created.
    fn prepare_creation(&mut self, domain: DomId, transaction: u32, path: &Path) -> Result<bool, Fault> {
        let tree = self.view(domain, transaction, path)?;
        match tree.check(path, domain, Rights { read: false, write: true }) {
            Ok(_) => return Ok(false),
            Err(Errno::Enoent) => {}
            Err(fault) => return Err(fault),
        }
        if domain != CONTROL && tree.count_of(domain) + path.names().count() > limit::NODES {
            return Err(Errno::Enospc);
        }
        let mut parent = path.parent();
        while let Some(at) = parent {
            let exists = self.view(domain, transaction, &at)?.find(&at).is_some();
            if exists {
                break;
            }
            parent = at.parent();
        }
        Ok(true)
    }

    fn apply(&mut self, domain: DomId, transaction: u32, change: Change) -> Result<(), Fault> {
        if transaction == 0 {
            let changed = carry_out(&mut self.tree, domain, &change);
            let removal = matches!(change, Change::Remove(_));
            self.fire(&changed, removal);
            return Ok(());
        }
        let snapshot = self.snapshot(domain, transaction)?;
        if snapshot.changes.len() >= limit::CHANGES {
            return Err(Errno::Enospc);
        }
        carry_out(&mut snapshot.tree, domain, &change);
        snapshot.changes.push(change);
        Ok(())
    }

    /// Tells the watches. A removal reports the removed node to those above it, and each node below to its own watches.
    fn fire(&mut self, changed: &[String], removal: bool) {
        let Self { tree, connections } = self;
        for (&domain, connection) in connections {
            let Connection { watches, events, .. } = connection;
            for (position, path) in changed.iter().enumerate() {
                // Paths in the tree are well-formed.
                let Ok(path) = Path::parse(path, domain) else { continue };
                // A domain learns nothing of nodes that it may not read; of a removed one, the nearest parent decides.
                if matches!(tree.check(&path, domain, Rights::READ), Err(Errno::Eacces)) {
                    continue;
                }
                for watch in &*watches {
                    let covered = path.is_within(&watch.path);
                    let own = watch.path == path;
                    if own || (covered && (!removal || position == 0)) {
                        push_event(events, watch.event(domain, path.as_str()));
                    }
                }
            }
        }
    }
}

/// Makes a change and returns the paths that changed, the named one first.
fn carry_out(tree: &mut Tree, domain: DomId, change: &Change) -> Vec<String> {
    match change {
        Change::Write(path, value) => {
            tree.create(path, domain);
            tree.set_value(path, value);
            vec![path.to_string()]
        }
        Change::Mkdir(path) => {
            tree.create(path, domain);
            vec![path.to_string()]
        }
        Change::Remove(path) => tree.remove(path),
        Change::SetPermissions(path, permissions) => {
            tree.set_permissions(path, permissions);
            vec![path.to_string()]
        }
    }
}

fn push_event(events: &mut VecDeque<WatchEvent>, event: WatchEvent) {
    if events.len() < limit::EVENTS {
        events.push_back(event);
    }
}

impl Watch {
    fn event(&self, domain: DomId, path: &str) -> WatchEvent {
        let home = format!("{}/", Path::home(domain));
        let path = if self.relative { path.strip_prefix(&home).unwrap_or(path) } else { path };
        WatchEvent { path: path.to_owned(), token: self.token.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: DomId = DomId(1);
    const OTHER: DomId = DomId(2);

    fn path(text: &str) -> Path {
        Path::parse(text, GUEST).unwrap()
    }

    /// A store in which the guest owns its `data` directory and may read its home.
    fn store() -> Store {
        let mut store = Store::new();
        let home = Permissions::new(CONTROL, Rights::NONE).with(GUEST, Rights::READ);
        store.provide(&path("/local/domain/1"), b"", &home).unwrap();
        store.provide(&path("data"), b"", &Permissions::new(GUEST, Rights::NONE)).unwrap();
        store
    }

    #[test]
    fn a_guest_reads_what_it_wrote_and_missing_parents_appear() {
        let mut store = store();
        store.write(GUEST, 0, &path("data/a/b"), b"value").unwrap();
        assert_eq!(store.read(GUEST, 0, &path("data/a/b")), Ok(b"value".to_vec()));
        assert_eq!(store.directory(GUEST, 0, &path("data/a")), Ok(vec!["b".to_owned()]));
        assert_eq!(store.permissions(GUEST, 0, &path("data/a")).unwrap().0.owner(), GUEST);
    }

    #[test]
    fn access_follows_the_permissions_of_the_node_or_its_nearest_parent() {
        let mut store = store();
        assert_eq!(store.write(GUEST, 0, &path("name"), b"x"), Err(Errno::Eacces));
        assert_eq!(store.read(GUEST, 0, &path("name")), Err(Errno::Enoent));
        assert_eq!(store.read(OTHER, 0, &path("data")), Err(Errno::Eacces));
        assert_eq!(store.read(OTHER, 0, &path("data/none")), Err(Errno::Eacces));
        let give_away = Permissions::new(OTHER, Rights::ALL);
        assert_eq!(store.set_permissions(GUEST, 0, &path("data"), &give_away), Err(Errno::Eperm));
    }

    #[test]
    fn a_transaction_is_isolated_and_commits_when_nothing_it_saw_changed() {
        let mut store = store();
        let transaction = store.start_transaction(GUEST).unwrap();
        store.write(GUEST, transaction, &path("data/x"), b"new").unwrap();
        assert_eq!(store.read(GUEST, 0, &path("data/x")), Err(Errno::Enoent));
        assert_eq!(store.read(GUEST, transaction, &path("data/x")), Ok(b"new".to_vec()));
        store.end_transaction(GUEST, transaction, true).unwrap();
        assert_eq!(store.read(GUEST, 0, &path("data/x")), Ok(b"new".to_vec()));
    }

    #[test]
    fn a_transaction_conflicts_with_changes_of_what_it_saw_and_only_with_those() {
        for (elsewhere, outcome) in [
            ("data/read", Err(Errno::Eagain)),
            ("data/listed/new", Err(Errno::Eagain)),
            ("data/other/new", Ok(())),
        ] {
            let mut store = store();
            for node in ["data/read", "data/listed/old", "data/other"] {
                store.write(GUEST, 0, &path(node), b"1").unwrap();
            }
            let transaction = store.start_transaction(GUEST).unwrap();
            store.read(GUEST, transaction, &path("data/read")).unwrap();
            store.directory(GUEST, transaction, &path("data/listed")).unwrap();
            store.write(CONTROL, 0, &path(elsewhere), b"2").unwrap();
            assert_eq!(store.end_transaction(GUEST, transaction, true), outcome, "{elsewhere}");
        }
    }

    #[test]
    fn watches_fire_once_at_registration_and_then_on_changes_at_or_below() {
        let mut store = store();
        store.watch(GUEST, path("data"), true, "t").unwrap();
        assert_eq!(store.watch(GUEST, path("data"), true, "t"), Err(Errno::Eexist));
        let event = |path: &str| WatchEvent { path: path.to_owned(), token: "t".to_owned() };
        assert_eq!(store.take_events(GUEST), [event("data")]);
        store.write(GUEST, 0, &path("data/a/b"), b"").unwrap();
        assert_eq!(store.take_events(GUEST), [event("data/a/b")]);
        store.unwatch(GUEST, &path("data"), "t").unwrap();
        assert_eq!(store.unwatch(GUEST, &path("data"), "t"), Err(Errno::Enoent));
        store.write(GUEST, 0, &path("data/a"), b"").unwrap();
        assert_eq!(store.take_events(GUEST), []);
    }

    #[test]
    fn a_removal_is_reported_once_above_and_to_each_watch_below() {
        let mut store = store();
        store.write(GUEST, 0, &path("data/a/b/c"), b"").unwrap();
        store.watch(GUEST, path("data"), false, "above").unwrap();
        store.watch(GUEST, path("data/a/b"), false, "below").unwrap();
        store.take_events(GUEST);
        store.remove(GUEST, 0, &path("data/a")).unwrap();
        let events: Vec<(String, String)> =
            store.take_events(GUEST).into_iter().map(|event| (event.token, event.path)).collect();
        let home = "/local/domain/1";
        assert_eq!(
            events,
            [
                ("above".to_owned(), format!("{home}/data/a")),
                ("below".to_owned(), format!("{home}/data/a/b"))
            ]
        );
        assert_eq!(store.remove(GUEST, 0, &path("data/a")), Ok(()));
        assert_eq!(store.remove(GUEST, 0, &path("data/a/b")), Err(Errno::Enoent));
    }

    #[test]
    fn watches_fire_on_commit_not_before() {
        let mut store = store();
        store.watch(GUEST, path("data"), true, "t").unwrap();
        store.take_events(GUEST);
        let transaction = store.start_transaction(GUEST).unwrap();
        store.write(GUEST, transaction, &path("data/x"), b"").unwrap();
        assert_eq!(store.take_events(GUEST), []);
        store.end_transaction(GUEST, transaction, true).unwrap();
        assert_eq!(store.take_events(GUEST).len(), 1);
    }

    #[test]
    fn a_guest_cannot_exceed_its_limits() {
        let mut store = store();
        assert_eq!(store.write(GUEST, 0, &path("data/big"), &[b'x'; limit::VALUE + 1]), Err(Errno::Enospc));
        let mut made = 0;
        while store.write(GUEST, 0, &path(&format!("data/{made}")), b"").is_ok() {
            made += 1;
        }
        assert!(made < limit::NODES);
        let transactions = (0..limit::TRANSACTIONS + 1).map(|_| store.start_transaction(GUEST).is_ok());
        assert_eq!(transactions.filter(|started| *started).count(), limit::TRANSACTIONS);
    }
}
