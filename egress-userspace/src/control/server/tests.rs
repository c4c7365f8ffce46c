use std::os::unix::fs::FileTypeExt;

use serde_json::json;

use super::super::client::{Client, ClientError};
use super::*;

/// Streams three items, fails on reload, answers the rest with its name.
struct Echo;

impl Handler for Echo {
    fn handle(
        &self,
        request: Request,
        item: &mut dyn FnMut(Value) -> Result<(), LineError>,
    ) -> Result<Value, Failure> {
        match request {
            Request::Flows { .. } => {
                for number in 0..3 {
                    item(json!(number)).map_err(|error| Failure::failed(error.to_string(), ""))?;
                }
                Ok(Value::Null)
            }
            Request::Reload => Err(Failure::usage("no", "try")),
            Request::Apply { text, .. } => Ok(json!(text.len())),
            other => Ok(json!(format!("{other:?}"))),
        }
    }
}

fn served() -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::bind(&directory.path().join("run/egress.sock")).unwrap();
    server.serve(Arc::new(Echo)).unwrap();
    (directory, server)
}

#[test]
fn answers_lists_and_failures_reach_the_client() {
    let (_directory, server) = served();
    let client = || Client::connect(server.path()).unwrap();
    assert_eq!(client().call(&Request::Status).unwrap(), json!("Status"));
    let mut items = Vec::new();
    client()
        .stream(
            &Request::Flows {
                filter: Default::default(),
            },
            &mut |item| {
                items.push(item);
                Ok(())
            },
        )
        .unwrap();
    assert_eq!(items, [json!(0), json!(1), json!(2)]);
    let error = client().call(&Request::Reload).unwrap_err();
    assert!(
        matches!(error, ClientError::Failed(Failure { usage: true, .. })),
        "{error:?}"
    );
}

#[test]
fn a_large_file_fits_and_a_senseless_request_is_answered() {
    let (_directory, server) = served();
    let text = "\"\n".repeat(1 << 20);
    let apply = Request::Apply {
        file: "f".into(),
        text,
        dry_run: true,
    };
    assert_eq!(
        Client::connect(server.path())
            .unwrap()
            .call(&apply)
            .unwrap(),
        json!(2 << 20)
    );

    let mut stream = UnixStream::connect(server.path()).unwrap();
    stream.write_all(b"{\"op\":\"nonsense\"}\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("does not understand"), "{answer}");
}

#[test]
fn the_socket_is_for_its_owner_only() {
    let (_directory, server) = served();
    let metadata = fs::metadata(server.path()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_second_daemon_is_refused_by_process_id() {
    let (_directory, server) = served();
    let error = Server::bind(server.path()).unwrap_err();
    assert!(
        matches!(error, BindError::Running { pid: Some(pid), .. } if pid == std::process::id()),
        "{error}"
    );
    assert_eq!(
        Client::connect(server.path())
            .unwrap()
            .call(&Request::Status)
            .unwrap(),
        json!("Status")
    );
}

#[test]
fn a_stale_socket_is_replaced_and_anything_else_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("egress.sock");
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists(), "left by a daemon that was killed");
    assert!(matches!(
        Client::connect(&path),
        Err(ClientError::NotRunning { .. })
    ));
    drop(Server::bind(&path).unwrap());
    assert!(!path.exists(), "removed with its server");

    fs::write(&path, "precious").unwrap();
    assert!(matches!(
        Server::bind(&path),
        Err(BindError::Occupied { .. })
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn too_many_clients_are_told_so_and_places_return() {
    const WAITING: usize = 200;
    let (_directory, server) = served();
    // Clients that connect and say nothing hold a place each; the answer shows that all have theirs.
    let silent: Vec<_> = (0..MAX_CLIENTS)
        .map(|_| UnixStream::connect(server.path()).unwrap())
        .collect();
    let error = Client::connect(server.path())
        .unwrap()
        .call(&Request::Status)
        .unwrap_err();
    assert!(error.to_string().contains("16 clients already"), "{error}");
    // So are those that connect and do not ask: nobody waits for them.
    let deaf: Vec<_> = (0..WAITING)
        .map(|_| UnixStream::connect(server.path()).unwrap())
        .collect();
    let mut last = String::new();
    let mut stream = deaf.last().unwrap();
    stream.read_to_string(&mut last).unwrap();
    assert!(last.contains("16 clients already"), "{last}");
    drop((silent, deaf));
    // Places are free again as soon as the server has noticed.
    let end = Instant::now() + Duration::from_secs(60);
    while Client::connect(server.path())
        .unwrap()
        .call(&Request::Status)
        .is_err()
    {
        assert!(Instant::now() < end, "no place becomes free");
        thread::sleep(Duration::from_millis(5));
    }
}
