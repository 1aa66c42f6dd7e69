//! Nodes, and who may use them.

use std::collections::BTreeMap;

use paravane_abi::{errno::Errno, units::DomId};

use super::path::Path;

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights {
    /// Read the value and list the children.
    pub read: bool,
    /// Change the value, add and remove children.
    pub write: bool,
}

/// One entry of a node's permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// Whom it is about.
    pub domain: DomId,
    /// What they may do.
    pub rights: Rights,
}

/// A node's permissions: the first entry names the owner and what everybody else may do, the others are exceptions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions(Vec<Permission>);

/// The domain that may do everything: the one that holds the store.
pub(super) const CONTROL: DomId = DomId(0);

impl Rights {
    /// Nothing.
    pub const NONE: Self = Self { read: false, write: false };
    /// Reading.
    pub const READ: Self = Self { read: true, write: false };
    /// Both.
    pub const ALL: Self = Self { read: true, write: true };

    /// The letter of the wire format.
    fn letter(self) -> char {
        match (self.read, self.write) {
            (false, false) => 'n',
            (true, false) => 'r',
            (false, true) => 'w',
            (true, true) => 'b',
        }
    }
}

impl Permission {
    /// Reads the wire format: a letter and a domain number, as in `r5`.
    pub fn parse(text: &str) -> Option<Self> {
        let rights = match text.as_bytes().first()? {
            b'n' => Rights::NONE,
            b'r' => Rights::READ,
            b'w' => Rights { read: false, write: true },
            b'b' => Rights::ALL,
            _ => return None,
        };
        let digits = &text[1..];
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        Some(Self { domain: DomId(digits.parse().ok()?), rights })
    }
}

impl Permissions {
    /// A node of `owner`'s with which others may do `others`.
    pub fn new(owner: DomId, others: Rights) -> Self {
        Self(vec![Permission { domain: owner, rights: others }])
    }

    /// The permissions in `list`; `None` if it is empty.
    pub fn from_list(list: Vec<Permission>) -> Option<Self> {
        (!list.is_empty()).then_some(Self(list))
    }

    /// Adds an exception.
    #[must_use]
    pub fn with(mut self, domain: DomId, rights: Rights) -> Self {
        self.0.push(Permission { domain, rights });
        self
    }

    /// The owner.
    pub fn owner(&self) -> DomId {
        self.0[0].domain
    }

    /// The same for a node that `domain` creates.
    pub(super) fn inherited_by(&self, domain: DomId) -> Self {
        let mut permissions = self.clone();
        if domain != CONTROL {
            permissions.0[0].domain = domain;
        }
        permissions
    }

    /// What `domain` may do.
    pub fn rights_of(&self, domain: DomId) -> Rights {
        if domain == CONTROL || domain == self.owner() {
            return Rights::ALL;
        }
        let exception = self.0[1..].iter().find(|permission| permission.domain == domain);
        exception.unwrap_or(&self.0[0]).rights
    }

    /// The wire format: each entry with a NUL behind it.
    pub(super) fn to_wire(&self) -> Vec<u8> {
        let text =
            |permission: &Permission| format!("{}{}\0", permission.rights.letter(), permission.domain.0);
        self.0.iter().map(text).collect::<String>().into_bytes()
    }
}

/// A node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Vec<u8>,
    pub(super) permissions: Permissions,
    pub(super) children: BTreeMap<String, Self>,
    /// When the node itself was last changed; adding or removing a child counts.
    pub(super) generation: u64,
}

/// A whole tree.
#[derive(Clone, Debug)]
pub(super) struct Tree {
    root: Node,
    generation: u64,
}

impl Node {
    fn new(permissions: Permissions, generation: u64) -> Self {
        Self { value: Vec::new(), permissions, children: BTreeMap::new(), generation }
    }

    /// How many nodes below and including this one belong to `domain`.
    fn count_of(&self, domain: DomId) -> usize {
        let own = usize::from(self.permissions.owner() == domain);
        own + self.children.values().map(|child| child.count_of(domain)).sum::<usize>()
    }

    /// Calls `found` with every node from here down, and its path. `path` is this node's, empty for the root.
    fn visit<'a>(&'a self, path: &mut String, found: &mut impl FnMut(&str, &'a Self)) {
        found(if path.is_empty() { "/" } else { path }, self);
        for (name, child) in &self.children {
            let len = path.len();
            path.push('/');
            path.push_str(name);
            child.visit(path, found);
            path.truncate(len);
        }
    }
}

impl Tree {
    pub(super) fn new() -> Self {
        Self { root: Node::new(Permissions::new(CONTROL, Rights::READ), 0), generation: 0 }
    }

    pub(super) fn find(&self, path: &Path) -> Option<&Node> {
        path.names().try_fold(&self.root, |node, name| node.children.get(name))
    }

    fn find_mut(&mut self, path: &Path) -> Option<&mut Node> {
        path.names().try_fold(&mut self.root, |node, name| node.children.get_mut(name))
    }

    /// The generation of a node; `None` if it does not exist.
    pub(super) fn generation_of(&self, path: &Path) -> Option<u64> {
        self.find(path).map(|node| node.generation)
    }

    /// Whether `domain` has what `needed` asks at the node, or why not: `ENOENT` for a missing node, `EACCES` for a
    /// forbidden one or one whose nearest existing parent is forbidden too.
    pub(super) fn check(&self, path: &Path, domain: DomId, needed: Rights) -> Result<&Node, Errno> {
        let allowed = |node: &Node| {
            let rights = node.permissions.rights_of(domain);
            (rights.read || !needed.read) && (rights.write || !needed.write)
        };
        match self.find(path) {
            Some(node) if allowed(node) => Ok(node),
            Some(_) => Err(Errno::Eacces),
            None if allowed(self.nearest(path)) => Err(Errno::Enoent),
            None => Err(Errno::Eacces),
        }
    }

    /// The deepest existing node on the way to `path`.
    fn nearest(&self, path: &Path) -> &Node {
        let mut node = &self.root;
        for name in path.names() {
            match node.children.get(name) {
                Some(child) => node = child,
                None => break,
            }
        }
        node
    }

    /// How many nodes belong to `domain`.
    pub(super) fn count_of(&self, domain: DomId) -> usize {
        self.root.count_of(domain)
    }

    /// Makes the node and its missing parents, owned by `domain`. Returns the paths made.
    pub(super) fn create(&mut self, path: &Path, domain: DomId) -> Vec<String> {
        self.generation += 1;
        let generation = self.generation;
        let (mut node, mut at, mut made) = (&mut self.root, String::new(), Vec::new());
        for name in path.names() {
            at.push('/');
            at.push_str(name);
            if !node.children.contains_key(name) {
                node.generation = generation;
                made.push(at.clone());
            }
            let permissions = node.permissions.inherited_by(domain);
            node = node.children.entry(name.to_owned()).or_insert_with(|| Node::new(permissions, generation));
        }
        made
    }

    /// Sets the value of an existing node.
    pub(super) fn set_value(&mut self, path: &Path, value: &[u8]) {
        self.change(path, |node| value.clone_into(&mut node.value));
    }

    /// Sets the permissions of an existing node.
    pub(super) fn set_permissions(&mut self, path: &Path, permissions: &Permissions) {
        self.change(path, |node| permissions.clone_into(&mut node.permissions));
    }

    fn change(&mut self, path: &Path, change: impl FnOnce(&mut Node)) {
        self.generation += 1;
        let generation = self.generation;
        if let Some(node) = self.find_mut(path) {
            change(node);
            node.generation = generation;
        }
    }

    /// Removes a node and all below it. Returns their paths.
    pub(super) fn remove(&mut self, path: &Path) -> Vec<String> {
        self.generation += 1;
        let generation = self.generation;
        let (Some(parent), Some(name)) = (path.parent(), path.names().next_back()) else { return Vec::new() };
        let Some(parent) = self.find_mut(&parent) else { return Vec::new() };
        let Some(removed) = parent.children.remove(name) else { return Vec::new() };
        parent.generation = generation;
        let mut paths = Vec::new();
        removed.visit(&mut path.as_str().to_owned(), &mut |path, _| paths.push(path.to_owned()));
        paths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_read_and_print_the_wire_format() {
        for text in ["n0", "r5", "w17", "b1"] {
            let permission = Permission::parse(text).unwrap();
            let permissions = Permissions::from_list(vec![permission]).unwrap();
            assert_eq!(permissions.to_wire(), format!("{text}\0").into_bytes());
        }
        for text in ["", "x1", "r", "r-1", "r99999", "r1 "] {
            assert_eq!(Permission::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_first_entry_is_owner_and_default_and_others_are_exceptions() {
        let permissions = Permissions::new(DomId(1), Rights::READ).with(DomId(2), Rights::NONE);
        for (domain, rights) in [(0, Rights::ALL), (1, Rights::ALL), (2, Rights::NONE), (3, Rights::READ)] {
            assert_eq!(permissions.rights_of(DomId(domain)), rights, "{domain}");
        }
    }
}
