//! git: many small files, renames, locks by exclusive creation, mapped packs.

use holdfast_tests::command::{quote, repository, shell};

use crate::{LIMIT, folder};

#[test]
fn a_clone_of_this_repository_is_sound_and_can_be_worked_in() {
    let Some(at) = folder("a_clone_of_this_repository_is_sound_and_can_be_worked_in", &["git"]) else { return };
    let (from, clone) = (quote(repository()), quote(at.join("clone")));
    // Over file://, so that git packs and unpacks instead of linking files.
    let git = "git -c safe.directory='*' -c user.name=test -c user.email=test@example.org";
    shell(&format!("{git} clone -q file://{from} {clone}"), LIMIT).expect("cloned");
    shell(&format!("{git} -C {clone} fsck --full --strict --no-progress"), LIMIT).expect("sound");
    let status = shell(&format!("{git} -C {clone} status --porcelain"), LIMIT).expect("status");
    assert_eq!(status, "", "the work tree differs from what was checked out");
    shell(
        &format!(
            "cd {clone}; {git} checkout -q -b work; echo line >> Cargo.lock; mkdir sub; mv Cargo.toml sub/; {git} add -A
             {git} commit -q -m change; {git} gc -q; {git} fsck --full --strict --no-progress"
        ),
        LIMIT,
    )
    .expect("commit, gc and fsck");
    let heads = |at: &str| shell(&format!("{git} -C {at} rev-parse HEAD^{{tree}}"), LIMIT).expect("tree");
    let parent = shell(&format!("{git} -C {clone} rev-parse HEAD~^{{tree}}"), LIMIT).expect("tree");
    assert_eq!(parent, heads(&from), "the clone's history is the original's");
}
