//! The namespace against a model of it that is as simple as can be: paths to nodes, in memory. Random operations by seed.

use super::{World, name};
use holdfast_types::prng::Prng;
use holdfast_types::{InodeId, SessionId};
use holdfast_wire::metadata::MetadataError;
use holdfast_wire::namespace::{FileKind, Mutation, NamespaceError, NewNode, Outcome, Query, RenameMode};
use std::collections::BTreeMap;

/// A node of the model: a directory's children, or a file.
#[derive(Clone, Debug, Default)]
struct Node {
    parent: u64,
    children: Option<BTreeMap<String, u64>>,
    links: u32,
}

#[derive(Clone, Debug)]
struct Model {
    nodes: BTreeMap<u64, Node>,
}

type Told = Result<(), NamespaceError>;

impl Model {
    fn new() -> Self {
        let root = Node { parent: 1, children: Some(BTreeMap::new()), links: 2 };
        Self { nodes: BTreeMap::from([(1, root)]) }
    }

    fn children(&mut self, directory: u64) -> &mut BTreeMap<String, u64> {
        self.nodes.get_mut(&directory).unwrap().children.as_mut().unwrap()
    }

    fn is_directory(&self, node: u64) -> bool {
        self.nodes[&node].children.is_some()
    }

    fn create(&mut self, parent: u64, text: &str, directory: bool, number: u64) -> Told {
        if self.children(parent).contains_key(text) {
            return Err(NamespaceError::Exists);
        }
        self.children(parent).insert(text.into(), number);
        let children = directory.then(BTreeMap::new);
        self.nodes.insert(number, Node { parent, children, links: if directory { 2 } else { 1 } });
        self.nodes.get_mut(&parent).unwrap().links += u32::from(directory);
        Ok(())
    }

    fn link(&mut self, inode: u64, parent: u64, text: &str) -> Told {
        if self.is_directory(inode) {
            return Err(NamespaceError::NotPermitted);
        }
        if self.children(parent).contains_key(text) {
            return Err(NamespaceError::Exists);
        }
        self.children(parent).insert(text.into(), inode);
        self.nodes.get_mut(&inode).unwrap().links += 1;
        Ok(())
    }

    fn forget(&mut self, node: u64) {
        let links = if self.is_directory(node) { 0 } else { self.nodes[&node].links - 1 };
        if links == 0 {
            self.nodes.remove(&node);
        } else {
            self.nodes.get_mut(&node).unwrap().links = links;
        }
    }

    fn remove(&mut self, parent: u64, text: &str, directory: bool) -> Told {
        let Some(node) = self.children(parent).get(text).copied() else { return Err(NamespaceError::NotFound) };
        match (self.is_directory(node), directory) {
            (true, false) => return Err(NamespaceError::IsDirectory),
            (false, true) => return Err(NamespaceError::NotDirectory),
            (true, true) if !self.children(node).is_empty() => return Err(NamespaceError::NotEmpty),
            _ => {}
        }
        self.children(parent).remove(text);
        self.nodes.get_mut(&parent).unwrap().links -= u32::from(directory);
        self.forget(node);
        Ok(())
    }

    fn is_below(&self, mut node: u64, above: u64) -> bool {
        loop {
            if node == above {
                return true;
            }
            if node == 1 {
                return false;
            }
            node = self.nodes[&node].parent;
        }
    }

    fn rename(&mut self, from: (u64, &str), to: (u64, &str), mode: RenameMode) -> Told {
        let Some(moved) = self.children(from.0).get(from.1).copied() else { return Err(NamespaceError::NotFound) };
        let target = self.children(to.0).get(to.1).copied();
        if self.is_directory(moved) && self.is_below(to.0, moved) {
            return Err(NamespaceError::Invalid);
        }
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(NamespaceError::Exists),
            (RenameMode::Exchange, None) => return Err(NamespaceError::NotFound),
            (_, Some(target)) if target == moved => return Ok(()),
            (RenameMode::Exchange, Some(target)) if self.is_directory(target) && self.is_below(from.0, target) => {
                return Err(NamespaceError::Invalid);
            }
            (RenameMode::Exchange, Some(target)) => {
                self.put(from, Some(target));
                self.put(to, Some(moved));
                return Ok(());
            }
            (RenameMode::Replace, Some(target)) => match (self.is_directory(moved), self.is_directory(target)) {
                (true, false) => return Err(NamespaceError::NotDirectory),
                (false, true) => return Err(NamespaceError::IsDirectory),
                (true, true) if !self.children(target).is_empty() => return Err(NamespaceError::NotEmpty),
                _ => {
                    self.put(to, None);
                    self.forget(target);
                }
            },
            (RenameMode::Replace | RenameMode::NoReplace, None) => {}
        }
        self.put(from, None);
        self.put(to, Some(moved));
        Ok(())
    }

    /// Makes a name name something else, or nothing, and counts sub-directories anew.
    fn put(&mut self, (parent, text): (u64, &str), node: Option<u64>) {
        match node {
            Some(node) => {
                self.children(parent).insert(text.into(), node);
                if self.is_directory(node) {
                    self.nodes.get_mut(&node).unwrap().parent = parent;
                }
            }
            None => {
                self.children(parent).remove(text);
            }
        }
        let children: Vec<u64> = self.children(parent).values().copied().collect();
        let directories = children.iter().filter(|node| self.is_directory(**node)).count() as u32;
        self.nodes.get_mut(&parent).unwrap().links = 2 + directories;
    }
}

fn told(result: &Result<Outcome, MetadataError>) -> Told {
    match result {
        Ok(_) => Ok(()),
        Err(MetadataError::Namespace(error)) => Err(*error),
        Err(other) => panic!("{other:?}"),
    }
}

fn pick(prng: &mut Prng, model: &Model, directories: bool) -> u64 {
    let all: Vec<u64> =
        model.nodes.iter().filter(|(_, node)| !directories || node.children.is_some()).map(|(n, _)| *n).collect();
    *prng.pick(&all)
}

fn compare(world: &mut World, session: SessionId, model: &Model) {
    for (number, node) in &model.nodes {
        let inode = InodeId(*number);
        let attributes = world.attributes(session, inode);
        assert_eq!(attributes.links, node.links, "links of {inode}");
        let Some(children) = &node.children else { continue };
        assert_eq!((attributes.kind, attributes.parent), (FileKind::Directory, InodeId(node.parent)));
        let mut listed = BTreeMap::new();
        let mut after = 0;
        loop {
            let query = Query::ReadDirectory { inode, after, limit: 3, plus: true };
            let Ok(Outcome::Directory { entries, end, .. }) = world.query(session, query) else { panic!() };
            for entry in &entries {
                after = entry.cookie;
                let text = String::from_utf8(entry.name.as_bytes().to_vec()).unwrap();
                assert!(listed.insert(text, entry.inode.0).is_none(), "listed twice");
                assert_eq!(entry.attributes.as_ref().unwrap().inode, entry.inode);
            }
            if end {
                break;
            }
        }
        assert_eq!(listed, *children);
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    let mut refused = 0;
    for seed in 0..8 {
        let mut prng = Prng::new(seed);
        let mut world = World::formed(1, 3);
        let (session, _) = world.attach();
        let mut model = Model::new();
        for _ in 0..400 {
            let (parent, other) = (pick(&mut prng, &model, true), pick(&mut prng, &model, true));
            let (text, to_text) = (format!("n{}", prng.below(5)), format!("n{}", prng.below(5)));
            let (p, n) = (InodeId(parent), name(&text));
            let mut before = model.clone();
            let (mutation, expected) = match prng.below(10) {
                kind @ 0..=3 => {
                    let node = if kind < 2 { NewNode::Directory } else { NewNode::File };
                    let result = world.mutate(session, super::create(p, &text, node, false));
                    let number = match &result {
                        Ok(Outcome::Created { attributes, .. }) => attributes.inode.0,
                        _ => 0,
                    };
                    let expected = model.create(parent, &text, kind < 2, number);
                    assert_eq!(told(&result), expected, "seed {seed}");
                    continue;
                }
                4 => {
                    let inode = pick(&mut prng, &model, false);
                    (Mutation::Link { inode: InodeId(inode), parent: p, name: n }, model.link(inode, parent, &text))
                }
                5 => (Mutation::Unlink { parent: p, name: n, open: None }, model.remove(parent, &text, false)),
                6 => (Mutation::RemoveDirectory { parent: p, name: n }, model.remove(parent, &text, true)),
                kind => {
                    let mode = [RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange][(kind - 7) as usize];
                    let rename = Mutation::Rename {
                        from_parent: p,
                        from_name: n,
                        to_parent: InodeId(other),
                        to_name: name(&to_text),
                        mode,
                        open: None,
                    };
                    (rename, model.rename((parent, &text), (other, &to_text), mode))
                }
            };
            let result = world.mutate(session, mutation.clone());
            assert_eq!(told(&result), expected, "seed {seed}: {mutation:?}");
            if expected.is_err() {
                refused += 1;
                std::mem::swap(&mut model, &mut before);
            }
        }
        compare(&mut world, session, &model);
        world.check();
    }
    assert!(refused > 500, "many ways to fail were tried: {refused}");
}
