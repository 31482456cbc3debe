//! A log that is written, renamed, cut back, written anew and read in pieces of every size.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use super::{Cursor, Follower};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("lri-follow-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn log(&self) -> PathBuf {
        self.0.join("a.jsonl")
    }

    fn append(&self, text: &str) {
        OpenOptions::new().create(true).append(true).open(self.log()).unwrap().write_all(text.as_bytes()).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn line(t_ns: u64) -> String {
    format!("{{\"event\":\"resource_session_end\",\"timestamp\":\"x\",\"session_id\":\"s\",\"t_ns\":{t_ns}}}\n")
}

fn new_events(follower: &mut Follower, budget: usize) -> Vec<u64> {
    let mut found = Vec::new();
    while follower
        .poll(budget, |line, text| {
            assert!(text.starts_with(b"{\"event\"") && text.ends_with(b"}"));
            found.push(line.t_ns());
        })
        .unwrap()
    {}
    found
}

#[test]
fn every_event_comes_once_whatever_the_pieces() {
    for budget in [1, 7, 90, 1 << 20] {
        let folder = Folder::new(&format!("pieces-{budget}"));
        let mut follower = Follower::new(&folder.log());
        assert_eq!(new_events(&mut follower, budget), [0; 0], "no file yet");
        folder.append(&line(1));
        let second = line(2);
        folder.append(&second[..30]);
        assert_eq!(new_events(&mut follower, budget), [1], "the second is not whole");
        folder.append(&second[30..]);
        folder.append("no event\n\n{\"event\":\"of_the_future\",\"x\":1}\n");
        folder.append(&format!("{{\"event\":\"torso{}", line(3)));
        assert_eq!(new_events(&mut follower, budget), [2, 3]);
        let account = follower.account();
        assert_eq!((account.lines, account.events, account.unknown, account.bad), (6, 3, 1, 2));
        assert_eq!((account.rotations, account.truncations), (0, 0));
    }
}

#[test]
fn a_renamed_log_is_read_to_its_end_and_the_next_from_its_beginning() {
    let folder = Folder::new("rotation");
    folder.append(&line(1));
    let mut follower = Follower::new(&folder.log());
    assert_eq!(new_events(&mut follower, 1 << 20), [1]);
    folder.append(&line(2));
    fs::rename(folder.log(), folder.0.join("a.jsonl.1")).unwrap();
    assert_eq!(new_events(&mut follower, 1 << 20), [2], "what was written before the rename");
    // The writer still has the old file.
    OpenOptions::new().append(true).open(folder.0.join("a.jsonl.1")).unwrap().write_all(line(3).as_bytes()).unwrap();
    folder.append(&line(4));
    assert_eq!(new_events(&mut follower, 1 << 20), [3, 4]);
    assert_eq!(follower.account().rotations, 1);
}

#[test]
fn a_log_that_is_cut_back_or_written_anew_is_read_from_its_beginning() {
    let folder = Folder::new("truncation");
    folder.append(&(line(1) + &line(2)));
    let mut follower = Follower::new(&folder.log());
    assert_eq!(new_events(&mut follower, 1 << 20), [1, 2]);
    fs::write(folder.log(), line(3)).unwrap();
    assert_eq!(new_events(&mut follower, 1 << 20), [3], "shorter");
    fs::write(folder.log(), line(40) + &line(50) + &line(60)).unwrap();
    assert_eq!(new_events(&mut follower, 1 << 20), [40, 50, 60], "longer, with another beginning");
    assert_eq!(follower.account().truncations, 2);
}

#[test]
fn a_cursor_goes_on_where_it_was_in_the_same_file_only() {
    let folder = Folder::new("cursor");
    folder.append(&(line(1) + &line(2)));
    let mut follower = Follower::new(&folder.log());
    assert_eq!(new_events(&mut follower, 1 << 20), [1, 2]);
    let text = serde_json::to_string(&follower.cursor()).unwrap();
    let cursor: Cursor = serde_json::from_str(&text).unwrap();
    folder.append(&line(3));
    let mut second = Follower::resume(&folder.log(), &cursor).unwrap();
    assert_eq!(new_events(&mut second, 1 << 20), [3]);
    fs::remove_file(folder.log()).unwrap();
    folder.append(&(line(7) + &line(8) + &line(9) + &line(10)));
    let mut other = Follower::resume(&folder.log(), &cursor).unwrap();
    assert_eq!(new_events(&mut other, 1 << 20), [7, 8, 9, 10], "another file");
}

#[test]
fn a_line_longer_than_any_event_is_let_go_and_counted() {
    let folder = Folder::new("long");
    folder.append(&"x".repeat(super::MAX_LINE_BYTES + 100));
    let mut follower = Follower::new(&folder.log());
    assert_eq!(new_events(&mut follower, 1 << 20), [0; 0]);
    folder.append(&format!("yyy\n{}", line(5)));
    assert_eq!(new_events(&mut follower, 1 << 20), [5]);
    assert_eq!(follower.account().bad, 1);
}
