//! Where files have data and where they have holes.

use super::world::World;
use crate::{Call, ClientError, HandleId, Reply, Seek, ZeroMode};
use holdfast_types::limits::CHUNK_BYTES;
use holdfast_types::prng::Prng;
use holdfast_wire::namespace::SetAttributes;

const BLOCK: u64 = 4096;

fn seek(world: &mut World, handle: HandleId, offset: u64, seek: Seek) -> Option<u64> {
    match world.ask(Call::Seek { handle, offset, seek }) {
        Ok(Reply::Position(at)) => at,
        other => panic!("seek: {other:?}"),
    }
}

#[test]
fn buffered_and_stored_bytes_are_data_and_the_end_is_a_hole() {
    let mut world = World::new(1);
    world.mount();
    let (inode, handle) = world.create("f");
    assert_eq!(seek(&mut world, handle, 0, Seek::Data), None, "an empty file");
    assert_eq!(seek(&mut world, handle, 0, Seek::Hole), None, "an empty file");
    world.write(handle, 2 * BLOCK, vec![1; 5000]).unwrap();
    for round in ["buffered", "stored"] {
        assert_eq!(seek(&mut world, handle, 0, Seek::Data), Some(2 * BLOCK), "{round}");
        assert_eq!(seek(&mut world, handle, 0, Seek::Hole), Some(0), "{round}");
        assert_eq!(seek(&mut world, handle, 2 * BLOCK + 7, Seek::Data), Some(2 * BLOCK + 7), "{round}");
        assert_eq!(seek(&mut world, handle, 2 * BLOCK, Seek::Hole), Some(2 * BLOCK + 5000), "{round}");
        assert_eq!(seek(&mut world, handle, 2 * BLOCK + 5000, Seek::Data), None, "{round}");
        assert_eq!(seek(&mut world, handle, 2 * BLOCK + 5000, Seek::Hole), None, "{round}");
        world.ask(Call::Fsync { inode, data_only: false }).unwrap();
    }
    let zero = Call::Zero { handle, offset: 2 * BLOCK, length: BLOCK, mode: ZeroMode::KeepSize };
    world.ask(zero).unwrap();
    assert_eq!(seek(&mut world, handle, 0, Seek::Data), Some(3 * BLOCK));
}

#[test]
fn a_file_of_many_chunks_is_looked_through_with_few_questions() {
    let mut world = World::new(2);
    world.mount();
    let (inode, handle) = world.create("f");
    // Data at the far end, after 20 chunks that are there and an endless hole.
    for chunk in 0..20 {
        world.write(handle, chunk * CHUNK_BYTES, vec![1; CHUNK_BYTES as usize]).unwrap();
    }
    world.write(handle, 5000 * CHUNK_BYTES + 3 * BLOCK, vec![1; 10]).unwrap();
    world.ask(Call::Fsync { inode, data_only: false }).unwrap();
    let before = world.sent_chunks;
    assert_eq!(seek(&mut world, handle, 9, Seek::Hole), Some(20 * CHUNK_BYTES));
    assert_eq!(seek(&mut world, handle, 20 * CHUNK_BYTES, Seek::Data), Some(5000 * CHUNK_BYTES + 3 * BLOCK));
    // The chunk itself; eight groups, a second time where the answers of two chunks each were not enough. And the chunk, and eight groups for
    // 32, 512 and 8192 chunks.
    let asked = world.sent_chunks - before;
    assert!(asked <= 1 + 8 + 8 + 1 + 3 * 8, "{asked} questions");
    assert_eq!(seek(&mut world, handle, 5000 * CHUNK_BYTES + 4 * BLOCK, Seek::Data), None);
}

/// Programs look for holes only where fewer blocks are counted than a file's size takes.
#[test]
fn a_file_with_a_hole_says_that_it_may_have_some() {
    let mut world = World::new(4);
    world.mount();
    let published = |world: &World, inode| world.service.inodes[&inode].attributes.sparse;
    let fsync = |world: &mut World, inode| world.ask(Call::Fsync { inode, data_only: false }).unwrap();
    let (inode, handle) = world.create("written");
    world.write(handle, 0, vec![1; 5000]).unwrap();
    world.write(handle, 5000, vec![1; 5000]).unwrap();
    world.write(handle, 10_100, vec![1; 10]).unwrap();
    assert!(!world.stat(inode).sparse, "within the last block nothing is saved");
    fsync(&mut world, inode);
    assert!(!published(&world, inode));
    world.write(handle, 20 * BLOCK, vec![1; 10]).unwrap();
    assert!(world.stat(inode).sparse);
    fsync(&mut world, inode);
    assert!(published(&world, inode) && world.stat(inode).sparse);
    let cut = SetAttributes { size: Some(0), ..SetAttributes::default() };
    world.ask(Call::SetAttributes { inode, set: cut }).unwrap();
    assert!(!world.stat(inode).sparse);
    world.write(handle, 0, vec![1; 5 * BLOCK as usize]).unwrap();
    fsync(&mut world, inode);
    assert!(!world.stat(inode).sparse);
    world.ask(Call::Zero { handle, offset: BLOCK, length: BLOCK, mode: ZeroMode::KeepSize }).unwrap();
    fsync(&mut world, inode);
    assert!(published(&world, inode) && world.stat(inode).sparse);
}

#[test]
fn a_closed_handle_has_no_holes() {
    let mut world = World::new(3);
    world.mount();
    let (_, handle) = world.create("f");
    world.ask(Call::Release { handle }).unwrap();
    let call = Call::Seek { handle, offset: 0, seek: Seek::Data };
    assert_eq!(world.ask(call), Err(ClientError::BadHandle));
}

/// Against the bytes: alone and beside others, over the seams of chunks, with writes of which some are stored and some not.
#[test]
fn no_byte_is_ever_said_to_be_in_a_hole() {
    for seed in 0..60 {
        let mut prng = Prng::new(seed);
        let mut world = World::new(seed);
        world.service.caching = prng.chance(1, 2);
        world.mount();
        let (inode, handle) = world.create("f");
        let mut model = vec![0u8; 3 * CHUNK_BYTES as usize];
        let mut size = 0;
        for _ in 0..30 {
            let seam = CHUNK_BYTES * prng.below(3);
            let at = (seam + prng.below(8 * BLOCK)).saturating_sub(4 * BLOCK);
            match prng.below(8) {
                0..4 => {
                    let length = 1 + prng.below(3 * BLOCK);
                    world.write(handle, at, vec![7; length as usize]).unwrap();
                    model[at as usize..(at + length) as usize].fill(7);
                    size = size.max(at + length);
                }
                4 => {
                    let length = 1 + prng.below(4 * BLOCK);
                    world.ask(Call::Zero { handle, offset: at, length, mode: ZeroMode::KeepSize }).unwrap();
                    model[at as usize..(at + length) as usize].fill(0);
                }
                5 => drop(world.ask(Call::Fsync { inode, data_only: false }).unwrap()),
                _ => check(&mut world, handle, &model[..size as usize], at),
            }
        }
        for at in [0, 1, BLOCK, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5] {
            check(&mut world, handle, &model[..size as usize], at);
        }
    }
}

fn check(world: &mut World, handle: HandleId, bytes: &[u8], at: u64) {
    let size = bytes.len() as u64;
    let (data, hole) = (seek(world, handle, at, Seek::Data), seek(world, handle, at, Seek::Hole));
    if at >= size {
        return assert_eq!((data, hole), (None, None), "at {at} of {size}");
    }
    let skipped = &bytes[at as usize..data.unwrap_or(size) as usize];
    assert!(skipped.iter().all(|byte| *byte == 0), "data between {at} and {data:?} of {size}");
    let hole = hole.expect("the end is one");
    assert!(bytes.get(hole as usize).is_none_or(|byte| *byte == 0), "data at {hole}");
    // Nor is everything called data: what looks like a hole from its first block on is none.
    let whole = |from: u64| bytes[from as usize..size.min(from + BLOCK) as usize].iter().all(|byte| *byte == 0);
    let mut blocks = (at.next_multiple_of(BLOCK)..size).step_by(BLOCK as usize);
    let first = blocks.find(|from| whole(*from)).unwrap_or(size);
    assert!(hole <= first, "a hole at {first} is passed over: {hole}");
}
