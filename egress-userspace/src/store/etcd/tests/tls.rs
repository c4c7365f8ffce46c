//! An etcd with TLS that knows its clients by certificates, and files that are wrong.

use super::*;

/// An authority, and a certificate of it for everybody here; all in files of its name.
fn authority(openssl: &Path, directory: &Path, name: &str) {
    let run = |arguments: &str| {
        let output = Command::new(openssl)
            .args(arguments.split(' '))
            .current_dir(directory)
            .output()
            .unwrap();
        assert!(output.status.success(), "openssl {arguments}: {output:?}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    run(&format!(
        "req -x509 {key} -days 2 -subj /CN={name} -out {name}-ca.crt -keyout {name}-ca.key"
    ));
    run(&format!(
        "req -new {key} -subj /CN={name} -out {name}.csr -keyout {name}.key"
    ));
    let extensions = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n";
    fs::write(directory.join("extensions"), extensions).unwrap();
    run(&format!(
        "x509 -req -in {name}.csr -CA {name}-ca.crt -CAkey {name}-ca.key -CAcreateserial -days 2 \
         -extfile extensions -out {name}.crt"
    ));
}

/// The authority's file, the client's own two, and words of what is said.
type Case = (
    &'static str,
    Option<(&'static str, &'static str)>,
    &'static [&'static str],
);

#[test]
fn clu_1_what_is_wrong_with_certificates_is_told_by_the_files_name() {
    const TEST: &str = "clu_1_what_is_wrong_with_certificates_is_told_by_the_files_name";

    let (Some(etcd), Some(openssl)) = (program("etcd"), program("openssl")) else {
        println!("SKIPPED: {TEST}: etcd or openssl is not installed");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    authority(&openssl, directory.path(), "ours");
    authority(&openssl, directory.path(), "theirs");
    fs::write(path("junk"), "no certificate").unwrap();
    let (port, peer) = (free_port(), free_port());
    let (client, peer) = (
        format!("https://127.0.0.1:{port}"),
        format!("http://127.0.0.1:{peer}"),
    );
    let child = Command::new(&etcd)
        .args(["--data-dir", "etcd", "--listen-client-urls", &client])
        .args(["--advertise-client-urls", &client])
        .args(["--listen-peer-urls", &peer])
        .args(["--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .args(["--cert-file", "ours.crt", "--key-file", "ours.key"])
        .args(["--client-cert-auth", "--trusted-ca-file", "ours-ca.crt"])
        .env("ETCD_UNSUPPORTED_ARCH", "arm64")
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _ends = Ending(child);
    let answer = |ca: &str, identity: Option<(&str, &str)>| {
        let config = Etcd {
            endpoints: vec![client.clone()],
            prefix: "/egress".into(),
            user: None,
            password_file: None,
            ca: (!ca.is_empty()).then(|| path(ca)),
            certificate: identity.map(|(certificate, _)| path(certificate)),
            key: identity.map(|(_, key)| path(key)),
        };
        // As the daemon does, inside of a runtime.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let opened = runtime.block_on(async { EtcdStore::open(&config, &path("copy.db")) });
        opened
            .and_then(|store| store.current().map(drop))
            .map_err(|error| error.to_string())
    };
    let ours = Some(("ours.crt", "ours.key"));
    wait("etcd to answer", || answer("ours-ca.crt", ours).is_ok());
    let cases: [Case; 9] = [
        (
            "theirs-ca.crt",
            ours,
            &["theirs-ca.crt", "`etcd_ca`", "UnknownIssuer"],
        ),
        ("", ours, &["`etcd_ca` names none"]),
        ("junk", ours, &["no certificate in", "junk", "`etcd_ca`"]),
        ("missing", ours, &["cannot read", "missing", "No such file"]),
        ("ours-ca.crt", None, &["`etcd_certificate`, `etcd_key`"]),
        (
            "ours-ca.crt",
            Some(("theirs.crt", "theirs.key")),
            &["theirs.crt", "`etcd_certificate`"],
        ),
        (
            "ours-ca.crt",
            Some(("ours.crt", "theirs.key")),
            &["ours.crt and", "theirs.key", "cannot be used together"],
        ),
        (
            "ours-ca.crt",
            Some(("junk", "ours.key")),
            &["no certificate in", "junk", "`etcd_certificate`"],
        ),
        (
            "ours-ca.crt",
            Some(("ours.crt", "junk")),
            &["junk", "`etcd_key`", "cannot be used"],
        ),
    ];
    for (ca, identity, words) in cases {
        let error = answer(ca, identity).unwrap_err();
        println!("{ca:?}, {identity:?}: {error}");
        for word in words {
            assert!(error.contains(word), "{ca:?}, {identity:?}: {error}");
        }
        assert!(!error.contains("does not speak"), "{error}");
    }
}

/// A process that ends with the value.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
