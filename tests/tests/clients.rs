//! Other people's programs through the gateway: what works on a plain route works through a bound zone, and the
//! server sees an address of the pool. A program that is not installed is a skipped test, by name.

use std::{fs, net::Ipv4Addr, thread, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use egress_tests::{
    needs,
    netns::Namespace,
    service::{self, Port, Service},
    site::{Plan, Site},
    standard::{A, BOUND, BOUND_ADDRESS, POOL},
};

/// How long a count may take to fall after the last packet.
const COUNT_LIMIT: Duration = Duration::from_secs(60);
/// Bytes of the files that clients fetch.
const FILE: usize = 3_000_001;

/// The address of origin A that all servers here listen on.
fn origin(site: &Site) -> Ipv4Addr {
    site.kind.origin(A)
}

/// Whether a printed address is one of the pool.
fn of_pool(address: &str) -> bool {
    POOL.iter().any(|pool| pool.to_string() == address)
}

/// A file whose bytes differ from place to place.
fn content() -> Vec<u8> {
    (0..FILE).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn client(site: &Site, command: &[&str]) -> Result<String> {
    service::client(&site.node(BOUND), command, "")
}

/// What `wget`-like clients left in a file must be what the server has.
fn same(path: &std::path::Path) -> Result<()> {
    let fetched = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    ensure!(
        fetched == content(),
        "{} differs: {} bytes of {FILE}",
        path.display(),
        fetched.len()
    );
    Ok(())
}

/// Two addresses and two ports, as RFC 5780 wants of a STUN server.
fn second_address(node: &Namespace, origin: Ipv4Addr) -> Result<Ipv4Addr> {
    let [a, b, c, d] = origin.octets();
    let second = Ipv4Addr::new(a, b, c, d + 1);
    node.ip(&format!("address add {second}/24 dev eth0"))?;
    Ok(second)
}

/// NAT-8: both mapping and filtering depend on address and port. A source port that can be kept is kept, so a
/// lone client's mapping may look independent of the destination; a port that no slice holds (below 2048) cannot be
/// kept, and shows what the mapping really is.
#[test]
fn nat_behaviour_by_turnutils_natdiscovery() -> Result<()> {
    const TEST: &str = "nat_behaviour_by_turnutils_natdiscovery";

    let Some(_turn) = needs::turn(TEST, &["turnserver", "turnutils_natdiscovery"]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let check = site.watch()?;
    let first = origin(&site);
    let second = second_address(&site.node(A), first)?;
    let directory = service::shared_directory(&site.lab.directory(), "stun")?;
    let (listen, listen_too) = (first.to_string(), second.to_string());
    let _server = Service::start(
        &site.node(A),
        &directory,
        &[
            "turnserver",
            "-n",
            "--stun-only",
            "--no-tls",
            "--no-dtls",
            "--no-cli",
            "--log-file=stdout",
            "--pidfile=turnserver.pid",
            "--userdb=turndb",
            "--listening-ip",
            &listen,
            "--listening-ip",
            &listen_too,
        ],
        &[Port::Udp(3478), Port::Udp(3479)],
    )?;
    let inside = BOUND_ADDRESS.to_string();
    let bound = site.node(BOUND);
    let behaviour = &|test: &str, port: &str, expected: &str| -> Result<()> {
        let said = service::client(
            &bound,
            &[
                "turnutils_natdiscovery",
                test,
                "-L",
                &inside,
                "-l",
                port,
                &listen,
            ],
            "",
        )?;
        ensure!(said.contains(expected), "{test} from port {port}: {said}");
        ensure!(
            POOL.iter()
                .any(|address| said.contains(&format!("{address}:"))),
            "no address of the pool: {said}"
        );
        Ok(())
    };
    // Side by side: what is filtered is found out by waiting.
    thread::scope(|scope| {
        let running = [
            ("-m", "1500", "NAT with Address and Port Dependent Mapping!"),
            ("-m", "40000", "NAT with Endpoint Independent Mapping!"),
            (
                "-f",
                "1501",
                "NAT with Address and Port Dependent Filtering!",
            ),
            (
                "-f",
                "40001",
                "NAT with Address and Port Dependent Filtering!",
            ),
        ]
        .map(|(test, port, expected)| scope.spawn(move || behaviour(test, port, expected)));
        running.into_iter().try_for_each(|run| {
            run.join()
                .map_err(|_| anyhow!("a client's thread panicked"))?
        })
    })?;
    check.finish()?;
    Ok(())
}

#[test]
fn nat_behaviour_by_stun_client() -> Result<()> {
    const TEST: &str = "nat_behaviour_by_stun_client";

    let Some(_turn) = needs::turn(TEST, &["stun", "stund"]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let check = site.watch()?;
    let first = origin(&site).to_string();
    let second = second_address(&site.node(A), origin(&site))?.to_string();
    let _server = Service::start(
        &site.node(A),
        &site.lab.directory(),
        &["stund", "-h", &first, "-a", &second],
        &[Port::Udp(3478), Port::Udp(3479)],
    )?;
    // Its exit code is a bit field that tells the kind of NAT, so it is not a failure.
    let output = service::attempt(&site.node(BOUND), &["stun", &first, "-p", "1500"], "")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        said.contains("Primary: Dependent Mapping, random port, no hairpin"),
        "{said}"
    );
    check.finish()?;
    Ok(())
}

#[test]
fn many_requests_by_curl_to_nginx() -> Result<()> {
    const TEST: &str = "many_requests_by_curl_to_nginx";
    const REQUESTS: usize = 2000;

    let Some(_turn) = needs::turn(TEST, &["nginx", "curl"]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let check = site.watch()?;
    let directory = service::shared_directory(&site.lab.directory(), "nginx")?;
    fs::write(directory.join("file"), content())?;
    let place = directory.display().to_string();
    fs::write(
        directory.join("nginx.conf"),
        format!(
            "daemon off; pid {place}/nginx.pid; error_log stderr; worker_processes 2;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;\n\
             fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;\n\
             server {{ listen 8080; root {place};\n\
             location /ip {{ return 200 \"$remote_addr\\n\"; }} }} }}\n"
        ),
    )?;
    let configuration = format!("{place}/nginx.conf");
    let _server = Service::start(
        &site.node(A),
        &directory,
        &["nginx", "-p", &place, "-e", "stderr", "-c", &configuration],
        &[Port::Tcp(8080)],
    )?;
    let base = format!("http://{}:8080", origin(&site));
    // With keep-alive a few connections carry all, without each request has its own.
    let urls = format!("{base}/ip?[1-{REQUESTS}]");
    for more in [&[][..], &["--header", "Connection: close"]] {
        let mut command = vec![
            "curl",
            "--silent",
            "--show-error",
            "--fail",
            "--no-progress-meter",
            "--max-time",
            "100",
            "--parallel",
            "--parallel-max",
            "50",
        ];
        command.extend(more);
        command.push(&urls);
        let said = client(&site, &command)?;
        let (good, all) = (
            said.lines().filter(|line| of_pool(line)).count(),
            said.lines().count(),
        );
        ensure!(
            good == REQUESTS && all == REQUESTS,
            "{good} of {all} answers from the pool, {more:?}"
        );
    }
    let file = directory.join("fetched").display().to_string();
    client(
        &site,
        &["curl", "-sSf", "-o", &file, &format!("{base}/file")],
    )?;
    same(file.as_ref())?;
    site.wait_active((origin(&site), 8080).into(), "tcp", 0, COUNT_LIMIT)?;
    check.finish()?;
    Ok(())
}

#[test]
fn names_by_dig_from_nsd() -> Result<()> {
    const TEST: &str = "names_by_dig_from_nsd";
    const QUERIES: usize = 200;

    let Some(_turn) = needs::turn(TEST, &["nsd", "dig"]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let check = site.watch()?;
    let directory = service::shared_directory(&site.lab.directory(), "nsd")?;
    let place = directory.display().to_string();
    // Too much for 1,232 bytes: over UDP the answer is cut short, and dig asks again over TCP.
    let big: Vec<_> = (0..20)
        .map(|at| format!("\"{}\"", format!("{at:02}").repeat(100)))
        .collect();
    let records = (0..QUERIES).fold(String::new(), |records, at| {
        records + &format!("n{at} A 192.0.2.{}\n", at % 250)
    });
    fs::write(
        directory.join("zone"),
        format!(
            "$ORIGIN example.test.\n$TTL 60\n@ SOA ns root 1 60 60 60 60\n@ NS ns\nns A 192.0.2.1\nbig TXT {}\n{records}",
            big.join(" ")
        ),
    )?;
    fs::write(
        directory.join("nsd.conf"),
        format!(
            "server:\n  ip-address: {}\n  username: root\n  zonesdir: {place}\n  database: \"\"\n  logfile: {place}/log\n  \
             pidfile: {place}/pid\n  xfrdfile: {place}/xfrd\n  zonelistfile: {place}/list\n  xfrdir: {place}\n\
             remote-control:\n  control-enable: no\nzone:\n  name: example.test\n  zonefile: zone\n",
            origin(&site)
        ),
    )?;
    let configuration = format!("{place}/nsd.conf");
    let _server = Service::start(
        &site.node(A),
        &directory,
        &["nsd", "-d", "-c", &configuration],
        &[Port::Udp(53), Port::Tcp(53)],
    )?;
    let server = format!("@{}", origin(&site));
    for transport in ["+notcp", "+tcp"] {
        let answer = client(
            &site,
            &[
                "dig",
                "+short",
                "+tries=1",
                transport,
                &server,
                "n7.example.test",
            ],
        )?;
        ensure!(answer.trim() == "192.0.2.7", "{transport}: {answer:?}");
    }
    let answer = client(
        &site,
        &["dig", "+tries=1", &server, "big.example.test", "TXT"],
    )?;
    ensure!(
        answer.contains("retrying in TCP mode") && answer.contains("1919191919"),
        "{answer}"
    );
    // All from one socket each: every query is a UDP flow of its own.
    let batch = (0..QUERIES).fold(String::new(), |batch, at| {
        batch + &format!("n{at}.example.test\n")
    });
    let list = directory.join("batch");
    fs::write(&list, batch)?;
    let list = list.display().to_string();
    let answers = client(&site, &["dig", "+short", "+tries=1", &server, "-f", &list])?;
    let good = answers
        .lines()
        .filter(|line| line.starts_with("192.0.2."))
        .count();
    ensure!(
        good == QUERIES,
        "{good} of {QUERIES} queries answered: {answers}"
    );
    check.finish()?;
    Ok(())
}

#[test]
fn tls_by_openssl() -> Result<()> {
    const TEST: &str = "tls_by_openssl";

    let Some(_turn) = needs::turn(TEST, &["openssl"]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let check = site.watch()?;
    let directory = service::shared_directory(&site.lab.directory(), "tls")?;
    fs::write(directory.join("file"), content())?;
    let address = origin(&site);
    let (certificate, key) = service::certificate(&directory, &format!("IP:{address}"))?;
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let _server = Service::start(
        &site.node(A),
        &directory,
        &[
            "openssl",
            "s_server",
            "-accept",
            "4433",
            "-cert",
            &certificate,
            "-key",
            &key,
            "-WWW",
            "-quiet",
        ],
        &[Port::Tcp(4433)],
    )?;
    let target = format!("{address}:4433");
    let verify = address.to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        let mut command = vec![
            "openssl",
            "s_client",
            "-quiet",
            "-verify_quiet",
            "-connect",
            &target,
        ];
        command.extend([
            "-CAfile",
            &certificate,
            "-verify_return_error",
            "-verify_ip",
            &verify,
            version,
        ]);
        let output = service::attempt(&site.node(BOUND), &command, "GET /file HTTP/1.0\r\n\r\n")?;
        let said = &output.stdout;
        let body = said
            .windows(4)
            .position(|at| at == b"\r\n\r\n")
            .map(|at| &said[at + 4..]);
        ensure!(
            body == Some(&content()[..]),
            "{version}: {} bytes came, {}",
            said.len(),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    check.finish()?;
    Ok(())
}

#[test]
fn quic_by_ngtcp2() -> Result<()> {
    const TEST: &str = "quic_by_ngtcp2";

    let Some(_turn) = needs::turn(TEST, &["gtlsclient", "gtlsserver", "openssl"]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let check = site.watch()?;
    let directory = service::shared_directory(&site.lab.directory(), "quic")?;
    fs::write(directory.join("file"), content())?;
    let address = origin(&site).to_string();
    let (certificate, key) = service::certificate(&directory, "DNS:origin.test")?;
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let place = directory.display().to_string();
    let server = Service::start(
        &site.node(A),
        &directory,
        &[
            "gtlsserver",
            "-d",
            &place,
            &address,
            "4433",
            &key,
            &certificate,
        ],
        &[Port::Udp(4433)],
    )?;
    let fetched = service::shared_directory(&directory, "fetched")?;
    let download = format!("--download={}", fetched.display());
    let url = format!("https://{address}:4433/file");
    client(
        &site,
        &[
            "gtlsclient",
            "--quiet",
            "--exit-on-all-streams-close",
            &download,
            &address,
            "4433",
            &url,
        ],
    )?;
    same(&fetched.join("file"))?;
    let said = server.said();
    ensure!(
        POOL.iter().any(|pool| said.contains(&pool.to_string())),
        "{}",
        &said[..2000.min(said.len())]
    );
    check.finish()?;
    Ok(())
}

/// Passive mode: the data connections go to ports that the server names, and it takes them only from the address of
/// the control connection: the paired pooling of CAP-9.
#[test]
fn ftp_passive_by_curl_and_lftp() -> Result<()> {
    const TEST: &str = "ftp_passive_by_curl_and_lftp";
    const FILES: usize = 20;

    let Some(_turn) = needs::turn(TEST, &["vsftpd", "curl", "lftp"]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let check = site.watch()?;
    let directory = service::shared_directory(&site.lab.directory(), "ftp")?;
    let files = service::shared_directory(&directory, "files")?;
    for at in 0..FILES {
        fs::write(files.join(format!("file{at}")), content())?;
    }
    let configuration = directory.join("vsftpd.conf");
    let chroot = service::shared_directory(&directory, "chroot")?;
    fs::write(
        &configuration,
        format!(
            "listen=YES\nbackground=NO\nanonymous_enable=YES\nlocal_enable=NO\nanon_root={}\nftp_username=daemon\nno_anon_password=YES\n\
             secure_chroot_dir={}\npasv_enable=YES\npasv_promiscuous=NO\nport_enable=NO\nxferlog_enable=YES\n\
             vsftpd_log_file={}/vsftpd.log\nlog_ftp_protocol=YES\nseccomp_sandbox=NO\nisolate_network=NO\n",
            files.display(),
            chroot.display(),
            directory.display()
        ),
    )?;
    let configuration = configuration.display().to_string();
    let _server = Service::start(
        &site.node(A),
        &directory,
        &["vsftpd", &configuration],
        &[Port::Tcp(21)],
    )?;
    let fetched = service::shared_directory(&directory, "fetched")?;
    let url = format!("ftp://{}/", origin(&site));
    for way in ["--ftp-pasv", "--disable-epsv"] {
        let file = fetched.join(way).display().to_string();
        client(
            &site,
            &[
                "curl",
                "-sS",
                "--fail",
                way,
                "-o",
                &file,
                &format!("{url}file0"),
            ],
        )?;
        same(file.as_ref())?;
    }
    let mirror = format!(
        "set net:max-retries 1; mirror --parallel=4 / {}",
        fetched.display()
    );
    client(&site, &["lftp", "-c", &format!("open {url}; {mirror}")])?;
    for at in 0..FILES {
        same(&fetched.join(format!("file{at}")))?;
    }
    check.finish()?;
    Ok(())
}

#[test]
fn throughput_by_iperf3() -> Result<()> {
    const TEST: &str = "throughput_by_iperf3";
    const TRIES: usize = 10;

    let Some(_turn) = needs::turn(TEST, &["iperf3"]) else {
        return Ok(());
    };
    let site = Site::start(&Plan::default())?;
    let check = site.watch()?;
    let address = origin(&site).to_string();
    let _server = Service::start(
        &site.node(A),
        &site.lab.directory(),
        &["iperf3", "--server"],
        &[Port::Tcp(5201)],
    )?;
    for way in [
        &["--parallel", "4"][..],
        &["--parallel", "4", "--reverse"],
        &["--udp", "--bitrate", "50M"],
        &["--udp", "--bitrate", "50M", "--reverse"],
    ] {
        let mut command = vec!["iperf3", "--json", "--time", "1", "--client", &address];
        command.extend(way);
        // The receiver may lose some itself on a busy machine, but not whenever it is tried.
        let mut tries = (0..TRIES).map(|_| -> Result<_> {
            let said: serde_json::Value = serde_json::from_str(&client(&site, &command)?)?;
            let end = &said["end"];
            let received = ["sum_received", "sum"]
                .iter()
                .find_map(|sum| end[sum]["bytes"].as_u64())
                .with_context(|| format!("{end}"))?;
            let lost = end["sum"]["lost_percent"].as_f64();
            let good = !way.contains(&"--udp") || lost.is_some_and(|lost| lost < 5.0);
            Ok(received > 1_000_000 && good)
        });
        let good = tries.find(|good| !matches!(good, Ok(false)));
        ensure!(good.transpose()?.is_some(), "{way:?}: too little arrives");
    }
    check.finish()?;
    Ok(())
}
