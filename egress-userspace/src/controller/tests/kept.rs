//! SAFE-1, SAFE-5: what is bound stays bound where what was to be in force has been lost.

use super::*;
use crate::liveness::Healths;

const AEGIS: &str = "[zone.aegis]\nenabled = true\npool_id = \"a\"\n";

fn bound() -> String {
    file(&format!("{ZONE}{AEGIS}"))
}

/// A store that is new, and the data plane of one that bound a zone.
fn emptied() -> (tempfile::TempDir, Fake, Service) {
    let dataplane = Bench::new(&bound()).dataplane;
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("egress.toml"),
        "[dataplane]\nuplink = [\"up0\"]\n[store]\nsqlite = \"egress.db\"\n",
    )
    .unwrap();
    let service = start(directory.path(), dataplane.clone()).unwrap();
    (directory, dataplane, service)
}

fn times(dataplane: &Fake) -> usize {
    dataplane.0.lock().unwrap().applied.len()
}

#[test]
fn an_empty_store_unbinds_nothing_that_was_taken_over() {
    let (_directory, dataplane, service) = emptied();
    assert_eq!(times(&dataplane), 1);
    let reason = service.controller().behind().unwrap().to_owned();
    assert!(reason.contains("binds 1 zones"), "{reason}");
    assert!(service.follow().is_err());
    assert!(service.reload().is_err());
    assert!(service.controller().heard(Healths::new()).is_err());
    // An account alone would unbind it as well.
    let account = Source::new("r.toml", "account = [{ id = \"acme\" }]");
    let said = service.writer().unwrap().apply(&account, true).unwrap();
    assert!(
        said.notes[0].starts_with("1 zones are bound, and this file enables 0"),
        "that is meant, and said: {said:?}"
    );
    assert_eq!(times(&dataplane), 1);

    // Who says what is to be bound, and is not obeyed, has not said so.
    let all = Source::new("r.toml", bound());
    dataplane.0.lock().unwrap().broken = true;
    assert!(service.writer().unwrap().apply(&all, false).is_err());
    dataplane.0.lock().unwrap().broken = false;
    assert!(service.reload().is_err());
    assert_eq!(times(&dataplane), 1);

    let said = service.writer().unwrap().apply(&all, false).unwrap();
    assert_eq!(said.notes, [""; 0]);
    assert_eq!(times(&dataplane), 2);
    assert_eq!(service.controller().behind(), None);
}

#[test]
fn whoever_means_nothing_says_so() {
    let (_directory, dataplane, service) = emptied();
    for blank in ["", "\n# cut off\n"] {
        let source = Source::new("r.toml", blank);
        let failure = service.writer().unwrap().apply(&source, false).unwrap_err();
        assert!(failure.reason.contains("r.toml is empty"), "{failure}");
        assert_eq!(times(&dataplane), 1);
    }
    let nothing = Source::new("r.toml", "account = []");
    service.writer().unwrap().apply(&nothing, false).unwrap();
    assert_eq!(times(&dataplane), 2);
    assert_eq!(service.controller().behind(), None);
}

#[test]
fn a_resources_file_that_was_cut_off_is_refused_by_a_reload_and_a_start() {
    let bench = Bench::new(&bound());
    bench.write("r.toml", "");
    assert!(bench.service.reload().is_err());
    assert!(bench.in_force().zones[0].enabled);
    drop(bench.service);
    assert!(start(bench.directory.path(), bench.dataplane.clone()).is_err());
    assert_eq!(times(&bench.dataplane), 1);
}

#[test]
fn after_a_boot_a_file_that_is_wrong_keeps_nothing_from_being_bound() {
    let bench = Bench::new(&bound());
    bench.write("r.toml", "[[zone]]\nid = \"z\"\n");
    drop(bench.service);
    let booted = Fake::default();
    booted.0.lock().unwrap().unconfigured = true;
    assert!(start(bench.directory.path(), booted.clone()).is_err());
    let state = booted.0.lock().unwrap();
    assert!(state.applied[0].zones[0].enabled);
}
