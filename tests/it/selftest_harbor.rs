//! The imitation of Harbor: projects, and pushes into them.

use crate::support::client::Client;
use crate::support::harbor::{Harbor, Visibility};
use crate::support::image::Image;
use crate::support::skopeo::{Place, Skopeo};
use serde_json::json;

const PROJECTS: &str = "/api/v2.0/projects";

fn create(client: &Client, name: &str, public: &str) -> (u16, String) {
    let body = json!({"project_name": name, "metadata": {"public": public}}).to_string();
    let reply = client.ask("POST", PROJECTS, body.as_bytes());
    (reply.status, reply.code())
}

#[test]
fn projects_are_looked_up_and_created() {
    let harbor = Harbor::start();
    let client = Client::new(&harbor.host()).login();
    let stranger = Client::new(&harbor.host());
    assert_eq!(stranger.get("/api/v2.0/ping").body, b"Pong");
    assert!(stranger.get("/api/v2.0/systeminfo").json()["auth_mode"].is_string());
    let wanted = format!("{PROJECTS}?project_name=team");
    assert_eq!(client.head(&wanted).status, 404);
    assert_eq!(stranger.head(&wanted).status, 401);
    assert_eq!(create(&stranger, "team", "false").0, 401);
    assert_eq!(create(&client, "team", "false").0, 201);
    assert_eq!(client.head(&wanted).status, 200);
    assert_eq!(create(&client, "team", "false"), (409, "CONFLICT".to_owned()));
    assert_eq!(create(&client, "open", "true").0, 201);
    assert_eq!(create(&client, "Team", "false").0, 400);
    assert_eq!(create(&client, "x", "perhaps").0, 400);
    assert_eq!(harbor.projects()["team"], Visibility::Private);
    assert_eq!(harbor.projects()["open"], Visibility::Public);
    assert_eq!(client.get(&format!("{PROJECTS}?name=te")).json()[0]["name"], "team");
    assert_eq!(client.get(&format!("{PROJECTS}/open")).json()["metadata"]["public"], "true");
    harbor.only_admins_create();
    assert_eq!(create(&client, "more", "false"), (403, "FORBIDDEN".to_owned()));
    harbor.hide_missing();
    assert_eq!(client.head(&format!("{PROJECTS}?project_name=more")).status, 403);
    assert_eq!(harbor.creations_asked(), 7);
}

#[test]
fn a_push_into_no_project_is_refused_and_an_old_token_stays_useless() {
    let harbor = Harbor::start();
    let client = Client::new(&harbor.host());
    let ping = client.get("/v2/");
    let challenge = ping.header("www-authenticate");
    assert!(challenge.contains("/service/token\",service=\"harbor-registry\""), "{challenge}");
    let token = || {
        let path = "/service/token?service=harbor-registry&scope=repository:team/app:pull,push";
        let reply = Client::new(&harbor.host()).login().get(path);
        let token = reply.json()["token"].as_str().expect("a token").to_owned();
        Client::new(&harbor.host()).authorization(format!("Bearer {token}"))
    };
    let early = token();
    let refused = early.ask("POST", "/v2/team/app/blobs/uploads/", b"");
    assert_eq!((refused.status, refused.code().as_str()), (401, "UNAUTHORIZED"));
    assert_eq!(refused.header("www-authenticate"), "");
    let text = refused.json()["errors"][0]["message"].clone();
    assert_eq!(text, "project team not found: project team not found");
    assert_eq!(early.ask("POST", "/v2/app/blobs/uploads/", b"").code(), "BAD_REQUEST");
    harbor.add_project("team");
    let refused = early.ask("POST", "/v2/team/app/blobs/uploads/", b"");
    assert!(refused.header("www-authenticate").contains("insufficient_scope"));
    assert_eq!(token().upload("team/app", b"1").status, 201);
    assert_eq!(Client::new(&harbor.host()).login().upload("team/app", b"2").status, 201);
}

#[test]
fn skopeo_pushes_into_a_project() {
    let harbor = Harbor::start();
    let image = Image::new().layer_gzip_tar(&[("a", b"b")]).build();
    let layout = tempfile::tempdir().expect("making a temporary directory");
    image.write_oci_layout(layout.path(), "1");
    let target = format!("{}/team/app:1", harbor.host());
    let source = format!("oci:{}:1", layout.path().display());
    let address = format!("docker://{target}");
    let login = ["--dest-tls-verify=false", "--dest-creds=bed:secret"];
    let output = Skopeo::new().try_run(&["copy", login[0], login[1], &source, &address]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("unauthorized"), "{said}");
    harbor.add_project("team");
    Skopeo::new().copy(&Place::layout(layout.path(), "1"), &Place::plain(&target).login());
    assert_eq!(harbor.tags("team/app")["1"], image.digest());
    harbor.assert_complete();
}
