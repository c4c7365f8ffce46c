use std::os::unix::fs::FileTypeExt;

use serde_json::json;

use super::super::client::{Client, ClientError};
use super::*;

/// Answers once it is told to.
struct Waits(Mutex<mpsc::Receiver<()>>);

impl Handler for Waits {
    fn handle(
        &self,
        _: Request,
        _: &mut dyn FnMut(Value) -> Result<(), LineError>,
    ) -> Result<Value, Failure> {
        let _ = self.0.lock().unwrap().recv();
        Ok(json!("at last"))
    }
}

#[test]
fn who_works_gives_signs_of_life() {
    let directory = tempfile::tempdir().unwrap();
    let mut server = Server::bind(&directory.path().join("egress.sock")).unwrap();
    let (end, told) = mpsc::channel();
    server.serve(Arc::new(Waits(Mutex::new(told)))).unwrap();
    let mut stream = UnixStream::connect(server.path()).unwrap();
    stream.write_all(b"{\"op\":\"status\"}\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut next = || line::read::<Response>(&mut reader, 1000).unwrap().unwrap();
    assert_eq!(next(), Response::Working);
    assert_eq!(next(), Response::Working);
    end.send(()).unwrap();
    let last = std::iter::repeat_with(next).find(|response| *response != Response::Working);
    assert_eq!(last, Some(Response::Done(json!("at last"))));

    end.send(()).unwrap();
    let answer = Client::connect(server.path())
        .unwrap()
        .call(&Request::Status);
    assert_eq!(answer.unwrap(), json!("at last"));
}

#[test]
fn who_is_silent_is_named_and_so_is_one_whose_door_is_full() {
    const SILENCE: Duration = Duration::from_millis(20);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("egress.sock");
    let own = i32::try_from(std::process::id()).unwrap();
    let listener =
        socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    listener
        .bind(&socket2::SockAddr::unix(&path).unwrap())
        .unwrap();
    listener.listen(0).unwrap();
    let client = Client::connect_within(&path, SILENCE).unwrap();
    let error = client.call(&Request::Status).unwrap_err();
    assert!(
        matches!(&error, ClientError::Silent { socket, pid: Some(pid), .. } if *socket == path && *pid == own),
        "{error}"
    );
    let clients: Vec<_> = (0..8)
        .map(|_| Client::connect_within(&path, SILENCE))
        .collect();
    let last = clients.last().unwrap();
    assert!(
        matches!(last, Err(ClientError::Silent { pid: None, .. })),
        "{last:?}"
    );
}

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
