//! The report page: what it holds of a run, what it leaves out and says so, and what it refuses.

mod lab_support;

use std::fs;
use std::path::Path;

use ddim_engine::config::Config;
use lab_support::{Fake, engine};
use serde_json::Value;

/// The block of data in a page.
fn data(html: &str) -> Value {
    let start = html.find(r#"id="data">"#).unwrap() + r#"id="data">"#.len();
    let end = start + html[start..].find("</script>").unwrap();
    serde_json::from_str(&html[start..end]).unwrap()
}

fn report(args: &[&str], out: &Path) -> Value {
    let mut all = vec!["report"];
    all.extend(args);
    all.extend(["--out", out.to_str().unwrap()]);
    let said = engine(&all);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.out.contains("report.html"), "{said:?}");
    data(&fs::read_to_string(out).unwrap())
}

#[test]
fn a_page_has_what_the_run_has() {
    let dir = tempfile::tempdir().unwrap();
    let run = Fake::new(&dir.path().join("flowers")).metrics(60, 20).samples(3).finished().evaluated();
    let out = dir.path().join("report.html");
    let page = report(&[run.text()], &out);
    let html = fs::read_to_string(&out).unwrap();
    assert!(
        html.starts_with("<!doctype html>")
            && html.contains("Content-Security-Policy")
            && html.contains("name=\"viewport\"")
    );
    assert!(html.contains("default-src 'none'") && !html.contains("connect-src"), "a file asks nobody for anything");
    for remote in ["http://", "https://", "//cdn", "@import", "url(http"] {
        let allowed = if remote == "http://" { html.matches("http://www.w3.org/2000/svg").count() } else { 0 };
        assert_eq!(html.matches(remote).count(), allowed, "{remote}");
    }
    assert_eq!(page["title"], "flowers");
    let one = &page["runs"][0];
    assert_eq!(one["status"], "finished");
    assert_eq!(one["steps"], 60);
    assert_eq!(one["total_steps"], 160, "20 steps an epoch, 8 epochs");
    assert_eq!(one["parameters"], 1_258_115);
    assert_eq!(one["device"], "cpu (AVX512, 2 threads)", "without the reason for the choice");
    assert_eq!(one["seconds"], 12.5);
    assert_eq!(one["train"]["noise_loss"]["step"], serde_json::json!([10, 20, 30, 40, 50, 60]));
    assert_eq!(one["train"]["noise_loss"]["value"][1], 0.5);
    assert_eq!(one["held_back"]["loss"]["step"], serde_json::json!([20, 40, 60]));
    assert_eq!(one["valid"][0], 60);
    assert_eq!(one["samples"]["total"], 3);
    let src = one["samples"]["frames"][2]["src"].as_str().unwrap();
    assert!(src.starts_with("data:image/png;base64,iVBORw0KGgo"), "{src}");
    assert_eq!(
        (&one["samples"]["frames"][2]["epoch"], &one["samples"]["frames"][2]["width"]),
        (&Value::from(3), &Value::from(12))
    );
    assert_eq!(one["evaluation"]["levels"].as_array().unwrap().len(), 2);
    assert_eq!(one["config"], Config::quick_preset().to_toml());
    let commands = one["commands"].as_array().unwrap();
    assert_eq!(commands[0][1], "ddim-engine train");
    assert!(commands.iter().any(|c| c[1] == format!("ddim-engine sample {}", run.text())));
    assert!(!commands.iter().any(|c| c[1].as_str().unwrap().contains("--resume")), "it has come to its end");
}

#[test]
fn a_stopped_run_says_so_and_how_to_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let run = Fake::new(&dir.path().join("half")).metrics(30, 20);
    let page = report(&[run.text()], &dir.path().join("report.html"));
    let one = &page["runs"][0];
    assert_eq!(one["status"], "stopped");
    assert_eq!(one["progress"], "stopped before its end: step 30 of 160, epoch 2 of 8");
    assert!(
        one["commands"]
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c[1] == format!("ddim-engine train --resume {}", run.text()))
    );
}

#[test]
fn names_and_settings_cannot_leave_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let evil = "x<script>alert(1)<!--&'\"{{data}}";
    let config = Config { data: "</script><script>alert(2)</script>".into(), ..Config::quick_preset() };
    let run = Fake::with(&dir.path().join(evil), &config).metrics(30, 20).samples(1);
    let out = dir.path().join("report.html");
    let page = report(&[run.text(), "--title", "</title><script>alert(3)</script>"], &out);
    let html = fs::read_to_string(&out).unwrap();
    assert_eq!(html.matches("<script").count(), 2);
    assert_eq!(html.matches("</script").count(), 2);
    assert_eq!(html.matches("</title").count(), 1);
    assert_eq!(page["runs"][0]["name"], evil);
    assert_eq!(page["title"], "</title><script>alert(3)</script>");
    let command = page["runs"][0]["commands"][0][1].as_str().unwrap();
    assert_eq!(command, "ddim-engine train --set 'data=</script><script>alert(2)</script>'");
}

#[test]
fn several_runs_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let base = Config::quick_preset();
    Fake::with(&dir.path().join("runs/a"), &Config { lr: 1e-3, ..base.clone() }).metrics(60, 20).finished();
    Fake::with(&dir.path().join("runs/b"), &Config { lr: 5e-4, seed: 3, ..base.clone() }).metrics(40, 20);
    Fake::new(&dir.path().join("runs/c"));
    fs::create_dir_all(dir.path().join("runs/d")).unwrap();
    fs::write(dir.path().join("runs/d/config.toml"), "family = \n").unwrap();
    let runs = dir.path().join("runs");
    let a = runs.join("a");
    let out = dir.path().join("report.html");
    let said = engine(&["report", runs.to_str().unwrap(), a.to_str().unwrap(), "--out", out.to_str().unwrap()]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(
        said.err.contains("warning: ") && said.err.contains("has not trained yet") && said.err.contains("not TOML"),
        "{said:?}"
    );
    let page = data(&fs::read_to_string(&out).unwrap());
    assert_eq!(page["title"], "2 runs", "the one named twice comes once");
    assert_eq!(page["differing"], serde_json::json!([["lr", ["0.001", "0.0005"]], ["seed", ["0", "3"]]]));
    assert_eq!(page["notes"].as_array().unwrap().len(), 2);
    assert_eq!(page["runs"][1]["status"], "stopped");
}

#[test]
fn long_runs_are_thinned_and_grids_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let run = Fake::new(&dir.path().join("long")).metrics(50_000, 1000).samples(50);
    let each = fs::metadata(run.root.join("samples/epoch-0001.png")).unwrap().len();
    assert!(each * 50 > 1 << 20, "more than the page is given: {each}");
    let page = report(&[run.text(), "--pictures", "1"], &dir.path().join("report.html"));
    let one = &page["runs"][0];
    assert_eq!(one["records"], 5050);
    assert_eq!(one["thinned"], 2000);
    let steps = one["train"]["loss"]["step"].as_array().unwrap();
    assert!(steps.len() <= 2000 && steps.len() > 1500, "{}", steps.len());
    assert_eq!((&steps[0], steps.last().unwrap()), (&Value::from(10), &Value::from(50_000)));
    assert_eq!(one["held_back"]["loss"]["step"].as_array().unwrap().len(), 50);
    let epochs: Vec<_> =
        one["samples"]["frames"].as_array().unwrap().iter().map(|f| f["epoch"].as_u64().unwrap()).collect();
    assert_eq!(one["samples"]["total"], 50);
    assert!(epochs.len() >= 2 && epochs.len() < 50, "{epochs:?}");
    assert_eq!((epochs[0], epochs[epochs.len() - 1]), (1, 50));
}

#[test]
fn bad_input_has_its_message() {
    let dir = tempfile::tempdir().unwrap();
    let empty = Fake::new(&dir.path().join("empty"));
    engine(&["report", empty.text()]).fails(2, &["empty", "has no metrics.jsonl", "nothing has been trained"]);
    let begun = Fake::new(&dir.path().join("begun"));
    fs::write(begun.root.join("metrics.jsonl"), "").unwrap();
    engine(&["report", begun.text()]).fails(2, &["begun", "no records yet"]);
    let torn = Fake::new(&dir.path().join("torn")).metrics(20, 20);
    let lines = fs::read_to_string(torn.root.join("metrics.jsonl")).unwrap();
    fs::write(torn.root.join("metrics.jsonl"), format!("nonsense\n{lines}")).unwrap();
    engine(&["report", torn.text()]).fails(2, &["metrics.jsonl", "line 1 is not a metrics record"]);
    engine(&["report", "/nonexistent/run"]).fails(2, &["/nonexistent/run", "no such run"]);
    let nothing = dir.path().join("nothing");
    fs::create_dir(&nothing).unwrap();
    engine(&["report", nothing.to_str().unwrap()]).fails(2, &["nothing", "not a run directory"]);
    let good = Fake::new(&dir.path().join("good")).metrics(20, 20);
    engine(&["report", good.text(), "--out", "page.pdf"]).fails(2, &["--out page.pdf", ".html"]);
    let many = dir.path().join("many");
    for i in 0..41 {
        Fake::new(&many.join(format!("{i}"))).metrics(10, 10);
    }
    engine(&["report", many.to_str().unwrap()]).fails(2, &["41 runs", "at most 40"]);
}

#[test]
fn not_a_number_is_null() {
    let dir = tempfile::tempdir().unwrap();
    let run = Fake::new(&dir.path().join("nan")).metrics(30, 20);
    let path = run.root.join("metrics.jsonl");
    let line = r#"{"step":40,"epoch":2,"split":"train","loss":null,"noise_loss":null,"image_loss":1.0,"lr":0.002,"images_per_second":1.0,"seconds":1.0}"#;
    let lines = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{lines}{line}\n")).unwrap();
    let page = report(&[run.text()], &dir.path().join("report.html"));
    assert_eq!(page["runs"][0]["train"]["noise_loss"]["value"], serde_json::json!([1.0, 0.5, 0.333333, null]));
}
