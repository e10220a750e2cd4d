//! How a world ends: everything is made good, comes to rest, and is compared.

use super::World;
use crate::tests::client::Client;
use holdfast_types::{ChunkKey, GroupId};

impl World {
    /// Every member in sync holds what was just acknowledged, on its disk.
    pub(super) fn check_acknowledged(&self, client: usize, (group, chunks): (GroupId, Vec<ChunkKey>)) {
        let view = self.authority.map.view(group).expect("a view");
        for chunk in chunks {
            let Some(want) = self.clients[client].settled_content(chunk) else { continue };
            for member in &view.in_sync {
                let store = &self.nodes[member.node.0 as usize - 1].store;
                let have = store.content(group, chunk);
                assert!(
                    have == want || (have.is_empty() && want.is_empty()),
                    "acknowledged but not on {member} in {}: {group} {chunk}, {} bytes, wanted {}",
                    view.epoch,
                    have.len(),
                    want.len()
                );
            }
        }
    }

    /// Everything works again; all clients finish what they have begun.
    pub(crate) fn heal(&mut self) {
        self.cut.clear();
        std::mem::take(&mut self.mute).into_iter().for_each(|link| self.disconnect(link));
        self.unled.clear();
        self.mapless.clear();
        self.lose_view_answers = false;
        self.authority.readmit = true;
        self.authority.expire = true;
        for node in 0..self.nodes.len() {
            self.nodes[node].disk_hangs = false;
            self.nodes[node].store.no_space = 0;
            if !self.is_up(node) {
                self.start(node);
            }
        }
        for client in &mut self.clients {
            client.stopping = true;
        }
    }

    /// Progress after healing: every operation is answered, every view is whole again.
    pub(crate) fn settle(&mut self) {
        self.heal();
        let replicas = self.authority.map.replicas as usize;
        self.until("clients are answered", 60_000, |w| w.clients.iter().all(Client::is_idle));
        self.until("views are whole", 60_000, |w| w.authority.map.views.iter().all(|v| v.in_sync.len() == replicas));
        self.run(1_000);
        self.check_replicas();
        self.until("copies that nobody needs are gone", 20_000, |w| w.leftovers() == 0);
        self.check_replicas();
    }

    /// Members of a view are equal, and are what the clients were told.
    pub(crate) fn check_replicas(&self) {
        for (index, view) in self.authority.map.views.iter().enumerate() {
            let group = GroupId(index as u32);
            let held = view.in_sync.iter().map(|m| (*m, self.nodes[m.node.0 as usize - 1].store.chunks(group)));
            crate::invariants::replicas_equal(group, held.collect()).expect("replicas are equal");
            for client in &self.clients {
                for (chunk, want) in client.contents(group) {
                    let have = self.nodes[view.primary.node.0 as usize - 1].store.content(group, chunk);
                    assert_eq!(have.len(), want.len(), "length of {chunk} in {group}");
                    assert!(have == want, "content of {chunk} in {group}");
                }
            }
        }
    }
}
