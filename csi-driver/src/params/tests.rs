use super::*;
use crate::proto::volume_capability::{AccessMode, BlockVolume, MountVolume};
use holdfast_volume::{OpenPolicy, OpenRule};
use tonic::Code;

fn mount(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_mode: Some(AccessMode { mode: mode.into() }),
        access_type: Some(AccessType::Mount(MountVolume::default())),
    }
}

fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[test]
fn a_capability_is_a_mount_in_a_known_mode() {
    let mut all = vec![mount(Mode::SingleNodeWriter), mount(Mode::MultiNodeMultiWriter)];
    assert_eq!(capabilities(&all).expect("read"), Ok(()));
    let block = VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume::default())),
        ..mount(Mode::SingleNodeWriter)
    };
    all.push(block.clone());
    assert!(capabilities(&all).expect("read").is_err());
    assert_eq!(code(wanted(Some(&block))), Code::InvalidArgument);
    let unknown = VolumeCapability { access_mode: Some(AccessMode { mode: 99 }), ..mount(Mode::Unknown) };
    assert!(capability(&unknown).expect("read").is_err());
    for bad in [
        mount(Mode::Unknown),
        VolumeCapability { access_mode: None, ..mount(Mode::SingleNodeWriter) },
        VolumeCapability { access_type: None, ..mount(Mode::SingleNodeWriter) },
    ] {
        // Worse than one that we do not have, wherever it stands.
        assert_eq!(code(capabilities(&[block.clone(), bad.clone()])), Code::InvalidArgument, "{bad:?}");
        assert_eq!(code(wanted(Some(&bad))), Code::InvalidArgument);
    }
    assert_eq!((code(capabilities(&[])), code(wanted(None))), (Code::InvalidArgument, Code::InvalidArgument));
    let mut grouped = mount(Mode::SingleNodeWriter);
    for (text, expected) in [("", Some(None)), ("1000", Some(Some(1000))), ("staff", None), ("-1", None)] {
        let volume = MountVolume { volume_mount_group: text.into(), ..MountVolume::default() };
        grouped.access_type = Some(AccessType::Mount(volume));
        assert_eq!(wanted(Some(&grouped)).ok().map(|wanted| wanted.group), expected, "{text}");
    }
}

#[test]
fn a_misspelt_parameter_is_an_error_and_those_of_the_orchestrator_are_its_own() {
    let of = |key: &str, value: &str| parameters(&[(key.to_owned(), value.to_owned())].into());
    assert_eq!(of("inodes", "7").expect("read").inodes, Some(Some(7)));
    assert_eq!(of("inodes", "none").expect("read").inodes, Some(None));
    assert_eq!(of("csi.storage.k8s.io/pvc/name", "x").expect("read"), Parameters::default());
    let read = of("open", "single-writer").expect("read");
    assert_eq!((read.open, read.open_wait), (Some(OpenRule::SingleWriter), None));
    let before = OpenPolicy { rule: OpenRule::Exclusive, wait: 7 };
    assert_eq!(read.opened(before), OpenPolicy { rule: OpenRule::SingleWriter, wait: 7 });
    assert_eq!(of("openWait", "30").expect("read").opened(before), OpenPolicy { wait: 30, ..before });
    for (key, value) in [
        ("open", "exclusiv"),
        ("openWait", "3601"),
        ("openWait", "-1"),
        ("inodes", "0"),
        ("inodes", "many"),
        ("inode", "7"),
        ("", ""),
    ] {
        assert_eq!(code(of(key, value)), Code::InvalidArgument, "{key}={value}");
    }
}

#[test]
fn a_name_is_short_and_may_be_odd() {
    for good in ["a", "pvc-1", "a/b", "\u{e4}\u{4e2d}", "a\tb", &"x".repeat(128)] {
        assert_eq!(code(name(good)), Code::Ok, "{good}");
    }
    for bad in ["", "a\0b", "\u{7f}", "\u{85}", &"x".repeat(129), &"\u{e4}".repeat(65)] {
        assert_eq!(code(name(bad)), Code::InvalidArgument, "{bad:?}");
    }
    assert_eq!(
        (code(path("p", "a/b")), code(path("p", "/a")), code(path("p", ""))),
        (Code::InvalidArgument, Code::Ok, Code::InvalidArgument)
    );
}

#[test]
fn an_ephemeral_volume_says_how_large_it_is() {
    let of = |size: Option<&str>| {
        let mut context: HashMap<String, String> = [(EPHEMERAL.to_owned(), "true".to_owned())].into();
        context.extend(size.map(|size| ("size".to_owned(), size.to_owned())));
        ephemeral(&context)
    };
    assert_eq!(ephemeral(&HashMap::new()).expect("read"), None);
    assert_eq!(of(None).expect("read"), Some(Capacity::default()));
    assert_eq!(of(Some("1Gi")).expect("read").map(|size| size.required), Some(1 << 30));
    assert_eq!(of(Some("64 MiB")).expect("read").map(|size| size.required), Some(64 << 20));
    assert_eq!(code(of(Some("lots"))), Code::InvalidArgument);
}

#[test]
fn a_volume_is_reached_from_its_cluster() {
    let requirement = |places: &[&str]| TopologyRequirement {
        requisite: places.iter().map(|cluster| topology(cluster)).collect(),
        preferred: Vec::new(),
    };
    assert!(reaches(None, "c") && reaches(Some(&requirement(&[])), "c"));
    assert!(reaches(Some(&requirement(&["d", "c"])), "c"));
    assert!(!reaches(Some(&requirement(&["d"])), "c"));
    assert!(reaches_from(None, "c") && !reaches_from(Some(&topology("d")), "c"));
}
