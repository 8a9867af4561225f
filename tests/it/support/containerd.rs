//! containerd with the snapshotter of imgfs, and a small client of its CRI (`runtime.v1`), of which it has what the
//! tests need: messages by the numbers of their fields, and calls by their names.

use super::mount::{Done, Looking, free};
use super::process::spawn_tied;
use super::{text, wait_for};
use prost::Message;
use rustix::process::Pid;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};

const TURN: Duration = Duration::from_secs(20);

/// Whether the containerd of this machine is 2.x, and not 1.x.
pub(crate) fn is_2() -> bool {
    let output = Command::new("containerd").arg("--version").output().expect("running containerd");
    String::from_utf8_lossy(&output.stdout)
        .split(' ')
        .any(|word| word.trim_start_matches('v').starts_with("2."))
}

/// A snapshotter and a containerd that uses it. Both end when dropped.
pub(crate) struct Containerd {
    place: tempfile::TempDir,
    snapshotter: Option<Child>,
    containerd: Option<Child>,
    runtime: tokio::runtime::Runtime,
}

impl Containerd {
    /// Starts both. The registry `host` is plain, and has an image `pause` for sandboxes.
    #[track_caller]
    pub(crate) fn start(host: &str, pause: &str) -> Self {
        super::mount::require_fuse();
        let place = tempfile::tempdir().expect("making a temporary directory");
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("starting a runtime");
        let mut started = Self { place, snapshotter: None, containerd: None, runtime };
        std::fs::write(started.path("config.toml"), started.config(pause)).expect("writing");
        let hosts = started.path("hosts").join(host.replace(':', "_") + "_");
        std::fs::create_dir_all(&hosts).expect("making a directory");
        let hosts_toml = format!("server = \"http://{host}\"\n[host.\"http://{host}\"]\n");
        std::fs::write(hosts.join("hosts.toml"), hosts_toml).expect("writing");
        started.start_snapshotter();
        started.start_containerd();
        started
    }

    /// What `imgfs snapshotter setup` prints for the containerd of this machine, and what the tests need besides.
    fn config(&self, pause: &str) -> String {
        let (runtime, rest) = match is_2() {
            false => ("containerd-1", include_str!("containerd-1.toml")),
            true => ("containerd-2", include_str!("containerd-2.toml")),
        };
        let printed = Command::new(env!("CARGO_BIN_EXE_imgfs"))
            .args(["snapshotter", "setup", "--for", runtime, "--address"])
            .arg(self.path("snapshotter.sock"))
            .arg("--root")
            .arg(self.path("snapshotter"))
            .output()
            .expect("running imgfs");
        let printed = String::from_utf8(printed.stdout).expect("text");
        let [root, state] = ["root", "state"].map(|name| self.path(name).display().to_string());
        let disabled = ["btrfs", "zfs", "aufs", "devmapper"]
            .map(|name| format!("\"io.containerd.snapshotter.v1.{name}\""))
            .join(", ");
        format!(
            "root = {root:?}\nstate = {state:?}\ndisabled_plugins = [{disabled}, \"io.containerd.internal.v1.opt\"]\n{printed}\n{}",
            rest.replace("PLACE", text(self.place.path())).replace("PAUSE", pause)
        )
    }

    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.place.path().join(below)
    }

    fn log(&self, name: &str) -> std::fs::File {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(self.path(name));
        file.expect("creating")
    }

    /// What the snapshotter has logged.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(self.path("snapshotter.log")).unwrap_or_default()
    }

    #[track_caller]
    pub(crate) fn start_snapshotter(&mut self) {
        let (root, socket) = (self.path("snapshotter"), self.path("snapshotter.sock"));
        let (service, log) = (self.path("containerd.sock"), self.log("snapshotter.log"));
        let home = self.place.path().to_owned();
        let child = spawn_tied(env!("CARGO_BIN_EXE_imgfs"), |command| {
            command
                .args(["snapshotter", "--plain-http", "--root"])
                .arg(root)
                .arg("--address")
                .arg(&socket)
                .arg("--image-service")
                .arg(service)
                .env("HOME", home)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log);
        });
        self.snapshotter = Some(child.expect("starting imgfs"));
        wait_for("the snapshotter", TURN, || {
            std::os::unix::net::UnixStream::connect(&socket).is_ok()
        });
    }

    #[track_caller]
    pub(crate) fn start_containerd(&mut self) {
        let (config, log) = (self.path("config.toml"), self.log("containerd.log"));
        let child = spawn_tied("containerd", |command| {
            command.arg("-c").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        });
        self.containerd = Some(child.expect("starting containerd"));
        let socket = self.path("containerd.sock");
        wait_for("containerd", TURN, || socket.exists() && self.ctr(&["version"]).status.success());
    }

    /// The process of containerd, or else of the snapshotter.
    pub(crate) fn process(&self, is_containerd: bool) -> Pid {
        let child = if is_containerd { &self.containerd } else { &self.snapshotter };
        let id = child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        id.and_then(Pid::from_raw).expect("it runs")
    }

    /// Starts whichever has ended.
    #[track_caller]
    pub(crate) fn start_again(&mut self, is_containerd: bool) {
        let child = if is_containerd { &mut self.containerd } else { &mut self.snapshotter };
        child.take().expect("it was started").wait().expect("waiting");
        if is_containerd { self.start_containerd() } else { self.start_snapshotter() }
    }

    /// SIGKILL to the snapshotter.
    pub(crate) fn kill_snapshotter(&mut self) {
        let mut child = self.snapshotter.take().expect("it runs");
        child.kill().expect("killing");
        child.wait().expect("waiting");
    }

    /// Runs `ctr`, in the namespace of Kubernetes.
    #[track_caller]
    pub(crate) fn ctr(&self, args: &[&str]) -> Done {
        let socket = self.path("containerd.sock");
        let all = [&["-a", text(&socket), "-n", "k8s.io"], args].concat();
        Looking::start("ctr", &all, self.snapshotter.as_ref().map(Child::id)).wait()
    }

    /// Calls CRI at the socket `at`.
    pub(crate) fn call<A: Message + Default + 'static>(
        &self,
        at: &str,
        call: &'static str,
        request: impl Message + Default + 'static,
    ) -> Result<A, tonic::Status> {
        let path = self.path(at);
        let asked = async { tokio::time::timeout(TURN * 2, ask(&path, call, request)).await };
        self.runtime.block_on(asked).expect("in time")
    }

    /// Pulls an image, by way of imgfs.
    #[track_caller]
    pub(crate) fn pull(&self, image: &str, auth: Option<Auth>) {
        let request = PullImage { image: Some(ImageSpec { image: image.to_owned() }), auth };
        let call = "/runtime.v1.ImageService/PullImage";
        self.call::<Text>("snapshotter.sock", call, request).expect("pulling");
    }

    /// Runs a sandbox, and returns its identifier.
    #[track_caller]
    pub(crate) fn sandbox(&self, name: &str) -> (String, SandboxConfig) {
        self.try_sandbox(name).expect("running a sandbox")
    }

    pub(crate) fn try_sandbox(&self, name: &str) -> Result<(String, SandboxConfig), tonic::Status> {
        let config = SandboxConfig {
            metadata: Some(SandboxName {
                name: name.to_owned(),
                uid: name.to_owned(),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            log_directory: text(self.place.path()).to_owned(),
            linux: Some(LinuxSandbox {
                security: Some(SandboxSecurity { options: Some(on_node()) }),
            }),
        };
        let request = RunSandbox { config: Some(config.clone()) };
        let call = "/runtime.v1.RuntimeService/RunPodSandbox";
        let made: Text = self.call("containerd.sock", call, request)?;
        Ok((made.text, config))
    }

    /// Creates and starts a container, and returns its identifier.
    #[track_caller]
    pub(crate) fn container(
        &self,
        sandbox: &(String, SandboxConfig),
        name: &str,
        image: &str,
    ) -> String {
        self.try_container(sandbox, name, image).expect("running a container")
    }

    pub(crate) fn try_container(
        &self,
        sandbox: &(String, SandboxConfig),
        name: &str,
        image: &str,
    ) -> Result<String, tonic::Status> {
        let config = ContainerConfig {
            metadata: Some(ContainerName { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: image.to_owned() }),
            command: ["sleep", "1000"].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainer {
                security: Some(ContainerSecurity { options: Some(on_node()) }),
            }),
        };
        let request = CreateContainer {
            sandbox: sandbox.0.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox.1.clone()),
        };
        let call = "/runtime.v1.RuntimeService/CreateContainer";
        let made: Text = self.call("containerd.sock", call, request)?;
        let start = "/runtime.v1.RuntimeService/StartContainer";
        self.call::<Nothing>("containerd.sock", start, made.clone())?;
        Ok(made.text)
    }

    /// What a command in a container prints.
    #[track_caller]
    pub(crate) fn exec(&self, container: &str, command: &str) -> String {
        let command = ["sh", "-c", command].map(str::to_owned).to_vec();
        let request = Exec { container: container.to_owned(), command, timeout: 20 };
        let call = "/runtime.v1.RuntimeService/ExecSync";
        let done: Executed = self.call("containerd.sock", call, request).expect("executing");
        let (out, err) =
            (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert_eq!(done.exit_code, 0, "{out}{err}");
        out.into_owned()
    }

    /// Stops and removes a sandbox with its containers.
    #[track_caller]
    pub(crate) fn remove_sandbox(&self, sandbox: &str) {
        self.try_remove_sandbox(sandbox).expect("removing a sandbox");
    }

    pub(crate) fn try_remove_sandbox(&self, sandbox: &str) -> Result<(), tonic::Status> {
        for call in [
            "/runtime.v1.RuntimeService/StopPodSandbox",
            "/runtime.v1.RuntimeService/RemovePodSandbox",
        ] {
            let request = Text { text: sandbox.to_owned() };
            self.call::<Nothing>("containerd.sock", call, request)?;
        }
        Ok(())
    }

    /// The identifiers of all sandboxes.
    #[track_caller]
    pub(crate) fn sandboxes(&self) -> Vec<String> {
        let call = "/runtime.v1.RuntimeService/ListPodSandbox";
        let listed: Listed = self.call("containerd.sock", call, Nothing {}).expect("listing");
        listed.items.into_iter().map(|item| item.text).collect()
    }

    /// Removes images of containerd, by way of imgfs.
    #[track_caller]
    pub(crate) fn remove_images(&self, images: &[&String]) {
        for image in images {
            let request = OfImage { image: Some(ImageSpec { image: (*image).clone() }) };
            let call = "/runtime.v1.ImageService/RemoveImage";
            self.call::<Nothing>("snapshotter.sock", call, request).expect("removing an image");
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Containers that a failed test has left: their shims end with them.
        let listed = self.ctr(&["tasks", "ls", "-q"]).text();
        for task in listed.lines() {
            self.ctr(&["tasks", "kill", "-s", "KILL", task]);
        }
        for child in [&mut self.containerd, &mut self.snapshotter].into_iter().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
        let place = text(self.place.path());
        let own = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for mountpoint in own.filter(|at| at.starts_with(place)).collect::<Vec<_>>().iter().rev() {
            free(Path::new(mountpoint));
        }
    }
}

async fn ask<A: Message + Default + 'static>(
    socket: &Path,
    call: &'static str,
    request: impl Message + Default + 'static,
) -> Result<A, tonic::Status> {
    let endpoint = Endpoint::try_from(format!("unix:{}", socket.display())).expect("an address");
    let channel: Channel = endpoint.connect_lazy();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|e| tonic::Status::unavailable(e.to_string()))?;
    let codec = tonic_prost::ProstCodec::default();
    let path = PathAndQuery::from_static(call);
    client.unary(tonic::Request::new(request), path, codec).await.map(tonic::Response::into_inner)
}

fn on_node() -> Namespaces {
    Namespaces { network: 2 }
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Nothing {}

/// A message with one text in its first field.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Text {
    #[prost(string, tag = "1")]
    pub(crate) text: String,
}

/// A list of things that are known by the texts in their first fields.
#[derive(Clone, PartialEq, Message)]
struct Listed {
    #[prost(message, repeated, tag = "1")]
    items: Vec<Text>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct ImageSpec {
    #[prost(string, tag = "1")]
    pub(crate) image: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Auth {
    #[prost(string, tag = "1")]
    pub(crate) username: String,
    #[prost(string, tag = "2")]
    pub(crate) password: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct PullImage {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<ImageSpec>,
    #[prost(message, optional, tag = "2")]
    pub(crate) auth: Option<Auth>,
}

/// A message with an image in its first field.
#[derive(Clone, PartialEq, Message)]
struct OfImage {
    #[prost(message, optional, tag = "1")]
    pub(crate) image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Namespaces {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    options: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct LinuxSandbox {
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxName {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
    #[prost(uint32, tag = "4")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct SandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<SandboxName>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerName {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint32, tag = "2")]
    attempt: u32,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    options: Option<Namespaces>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerName>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<SandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct Exec {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Executed {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}
