//! What a client may do: three roles, and which users of the socket have which.

use crate::error::{Error, Result};
use crate::fs::read_text;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

/// Longest list of users or groups that is read, in bytes.
const MAX_LIST: u64 = 16 << 20;

/// What a client may do; each may what those before it may too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Ask, and read what is served and how the daemon does.
    Answer,
    /// Say what was right; look at recent answers.
    Teach,
    /// Everything: adapters, samples, training, going back, forgetting.
    Administer,
}

impl Role {
    /// All, the least first.
    pub const ALL: [Role; 3] = [Role::Answer, Role::Teach, Role::Administer];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Role::Answer => "answer",
            Role::Teach => "teach",
            Role::Administer => "administer",
        }
    }

    /// Reads a name. Errors: another word (usage).
    pub fn parse(text: &str) -> Result<Role> {
        let found = Role::ALL.into_iter().find(|role| role.name() == text);
        found.ok_or_else(|| {
            Error::usage(format!(
                "expected the role 'answer', 'teach' or 'administer', found '{text}'"
            ))
        })
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// `[peers]`: what users of the socket may do. Root and the daemon's own user may do all.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct PeersConfig {
    /// Those that neither `users` nor `groups` names.
    pub others: Role,
    /// By user, a name or a number; it counts before groups.
    pub users: BTreeMap<String, Role>,
    /// By group, a name or a number. Of several the greatest role counts.
    pub groups: BTreeMap<String, Role>,
}

impl Default for PeersConfig {
    fn default() -> PeersConfig {
        PeersConfig { others: Role::Administer, users: BTreeMap::new(), groups: BTreeMap::new() }
    }
}

impl PeersConfig {
    /// With the numbers of users and groups, from this machine's lists.
    ///
    /// # Errors
    /// No such user or group (bad input).
    pub fn resolve(&self) -> Result<Peers> {
        // A container may have no lists: numbers need none.
        let read = |path: &str| read_text(Path::new(path), MAX_LIST).unwrap_or_default();
        self.resolve_in(&read("/etc/passwd"), &read("/etc/group"))
    }

    fn resolve_in(&self, passwd: &str, group: &str) -> Result<Peers> {
        let missing =
            |key: &str, name: &str| Error::bad_input(format!("peers.{key}: no such {name}"));
        let mut peers = Peers { others: self.others, own: own_user(), ..Peers::default() };
        for (name, role) in &self.users {
            let (user, _) =
                entry(passwd, name).ok_or_else(|| missing("users", &format!("user '{name}'")))?;
            peers.users.insert(user, *role);
        }
        for (name, role) in &self.groups {
            let (number, members) =
                entry(group, name).ok_or_else(|| missing("groups", &format!("group '{name}'")))?;
            raise(&mut peers.groups, number, *role);
            for member in members.split(',') {
                if let Some((user, _)) = entry(passwd, member) {
                    raise(&mut peers.members, user, *role);
                }
            }
        }
        for line in passwd.lines() {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty());
            let user = fields.nth(1).and_then(|n| n.parse().ok());
            if let (Some(name), Some(user)) = (name, user) {
                peers.names.entry(user).or_insert_with(|| name.into());
            }
        }
        Ok(peers)
    }
}

fn own_user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn raise(roles: &mut HashMap<u32, Role>, of: u32, role: Role) {
    let known = roles.entry(of).or_insert(role);
    *known = role.max(*known);
}

/// Number and fourth field of the line of a name, or of a number, in a list of users or groups.
fn entry<'a>(list: &'a str, name: &str) -> Option<(u32, &'a str)> {
    let by_number: Option<u32> = name.parse().ok();
    let line = list.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let number: u32 = fields.get(2)?.parse().ok()?;
        let found = fields.first() == Some(&name) || by_number == Some(number);
        (found && !name.is_empty()).then(|| (number, fields.get(3).copied().unwrap_or_default()))
    });
    line.or_else(|| Some((by_number?, "")))
}

/// A user of the socket, as the kernel names it when the connection is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user's number.
    pub user: u32,
    /// The number of the process's group.
    pub group: u32,
}

/// Which users of the socket have which role.
#[derive(Clone, Debug)]
pub struct Peers {
    others: Role,
    own: u32,
    users: HashMap<u32, Role>,
    groups: HashMap<u32, Role>,
    /// Users that are listed as members of those groups.
    members: HashMap<u32, Role>,
    names: HashMap<u32, String>,
}

impl Default for Peers {
    fn default() -> Peers {
        let none = HashMap::new;
        Peers {
            others: Role::Administer,
            own: own_user(),
            users: none(),
            groups: none(),
            members: none(),
            names: HashMap::new(),
        }
    }
}

impl Peers {
    /// What a user may do.
    pub fn role(&self, peer: Option<Peer>) -> Role {
        let Some(peer) = peer else { return self.others };
        if peer.user == 0 || peer.user == self.own {
            return Role::Administer;
        }
        let by_group = || {
            let groups = [self.groups.get(&peer.group), self.members.get(&peer.user)];
            groups.into_iter().flatten().max().copied()
        };
        self.users.get(&peer.user).copied().or_else(by_group).unwrap_or(self.others)
    }

    /// A user's name, or number.
    pub fn name(&self, peer: Option<Peer>) -> String {
        let Some(peer) = peer else { return "unknown".into() };
        self.names.get(&peer.user).cloned().unwrap_or_else(|| peer.user.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\ncam:x:901:901::/:/bin/false\n\
                          ann:x:902:950::/home/ann:/bin/sh\nbob:x:903:903::/home/bob:/bin/sh\nbroken";
    const GROUP: &str =
        "root:x:0:\nfamily:x:950:bob,nobody-like-that\nvideo:x:951:cam,bob\nbroken:x";

    #[test]
    fn users_count_before_groups_and_the_greatest_group_counts() {
        let config: PeersConfig = toml::from_str(
            "others = \"answer\"\nusers = { cam = \"answer\", 904 = \"teach\" }\n\
             groups = { family = \"teach\", video = \"administer\" }",
        )
        .unwrap();
        let mut peers = config.resolve_in(PASSWD, GROUP).unwrap();
        peers.own = 1;
        let role = |user, group| peers.role(Some(Peer { user, group }));
        assert_eq!(role(901, 901), Role::Answer, "named, though a member of video");
        assert_eq!(role(902, 950), Role::Teach, "by the group of its process");
        assert_eq!(role(903, 903), Role::Administer, "the greater of its two groups");
        assert_eq!(role(904, 1), Role::Teach, "by number, in no list");
        assert_eq!(role(905, 5), Role::Answer, "others");
        assert_eq!((role(0, 0), role(1, 1)), (Role::Administer, Role::Administer));
        assert_eq!(peers.role(None), Role::Answer);
        assert_eq!(peers.name(Some(Peer { user: 903, group: 0 })), "bob");
        assert_eq!(peers.name(Some(Peer { user: 904, group: 0 })), "904");
        for wrong in ["users = { eve = \"teach\" }", "groups = { eve = \"teach\" }"] {
            let config: PeersConfig = toml::from_str(wrong).unwrap();
            let e = config.resolve_in(PASSWD, GROUP).unwrap_err();
            assert!(e.message().contains("no such") && e.message().contains("eve"), "{e}");
        }
        assert!(toml::from_str::<PeersConfig>("others = \"owner\"").is_err());
    }

    #[test]
    fn without_a_word_of_it_all_may_do_all() {
        let peers = PeersConfig::default().resolve().unwrap();
        assert_eq!(peers.role(Some(Peer { user: 4_000_000, group: 7 })), Role::Administer);
        assert!(Role::Answer < Role::Teach && Role::Teach < Role::Administer);
        assert_eq!(Role::ALL.map(|r| Role::parse(r.name()).unwrap()), Role::ALL);
        assert!(Role::parse("owner").is_err());
    }
}
