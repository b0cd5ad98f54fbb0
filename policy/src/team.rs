//! Teams: who may say in a file of their own who reaches *their* workloads, and nobody else's.

use std::collections::{BTreeSet, HashMap};

use crate::fault::{Faults, quoted};
use crate::group::Groups;
use crate::names::End;
use crate::outside::Outsides;
use crate::rule::Placed;
use crate::section::{Section, section};
use crate::table::Table;
use crate::workload::Workload;

/// A team.
#[derive(Debug, Clone)]
pub(crate) struct Team {
    pub(crate) name: String,
    files: Vec<String>,
    workloads: Vec<Pattern>,
}

/// `payments/api`, or `payments/*` for everything below.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern(String);

impl Pattern {
    fn covers(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => self.0 == name,
        }
    }

    /// Whether some name fits both.
    fn meets(&self, other: &Self) -> bool {
        let plain = |pattern: &Self| pattern.0.trim_end_matches('*').to_owned();
        self.covers(&plain(other)) || other.covers(&plain(self))
    }
}

impl Team {
    pub(crate) fn covers(&self, workload: &str) -> bool {
        self.workloads.iter().any(|pattern| pattern.covers(workload))
    }
}

/// Reads every `[[team]]`: no two have a file or a name of a workload in common.
pub(crate) fn read(tables: &[Table<'_>], faults: &mut Faults<'_>) -> Vec<Team> {
    let mut teams: Vec<Team> = Vec::new();
    for table in tables {
        let name = table.required_text("name", faults);
        let files = table.required_texts("files", faults).unwrap_or_default();
        let patterns = table.required_texts("workloads", faults).unwrap_or_default();
        let mut workloads = Vec::new();
        for text in &patterns {
            let pattern = Pattern(text.value.to_owned());
            let stem = text.value.strip_suffix("/*").unwrap_or(text.value);
            if stem.parse::<bonafide_proto::name::WorkloadName>().is_err() {
                let right = "write the name of a workload, or \"payments/*\" for all below";
                faults.wrong(text.at, format!("{} is no name of workloads; {right}", quoted(text.value)));
            } else if let Some(other) = teams.iter().find(|team| team.workloads.iter().any(|p| p.meets(&pattern))) {
                faults.wrong(
                    text.at,
                    format!("{} belongs to the team {} already", quoted(text.value), quoted(&other.name)),
                );
            } else {
                workloads.push(pattern);
            }
        }
        for file in &files {
            if let Some(other) = teams.iter().find(|team| team.files.iter().any(|other| other == file.value)) {
                faults.wrong(
                    file.at,
                    format!("{} belongs to the team {} already", quoted(file.value), quoted(&other.name)),
                );
            }
        }
        let Some(name) = name else { continue };
        if teams.iter().any(|team| team.name == name.value) {
            faults.wrong(name.at, format!("{} is already the name of a team; choose another", quoted(name.value)));
        }
        let files = files.iter().map(|file| file.value.to_owned()).collect();
        teams.push(Team { name: name.value.to_owned(), files, workloads });
    }
    teams
}

/// Everything that files of teams may not say.
pub(crate) struct Limits<'p> {
    sections: &'p [Section],
    of: HashMap<&'p str, &'p Team>,
}

impl<'p> Limits<'p> {
    /// The files of these teams; included files of no team are as the first file.
    pub(crate) fn of(teams: &'p [Team], sections: &'p [Section], faults: &mut Faults<'_>) -> Self {
        let mut of = HashMap::new();
        for team in teams {
            for file in &team.files {
                if !sections.iter().any(|section| section.name == *file) {
                    faults.wrong_if_whole(
                        0,
                        format!("the team {} has the file {}, which is not included", quoted(&team.name), quoted(file)),
                    );
                }
                of.insert(file.as_str(), team);
            }
        }
        Self { sections, of }
    }

    /// The team whose file holds this byte.
    fn team(&self, at: usize) -> Option<&'p Team> {
        self.of.get(section(self.sections, at)?.name.as_str()).copied()
    }

    /// Names are declared by whom they belong to.
    pub(crate) fn declared(&self, tables: &[Table<'_>], what: &str, faults: &mut Faults<'_>) {
        for table in tables {
            let Some(team) = self.team(table.at) else { continue };
            let Some(name) = table.get("name").and_then(|value| value.get_ref().as_str()) else { continue };
            if !team.covers(name) {
                let message =
                    format!("this file is of the team {}, which has no {what} {}", quoted(&team.name), quoted(name));
                faults.wrong(table.place("name"), format!("{message}; it belongs into another file"));
            }
        }
    }

    /// Guards are for all, and so for nobody alone.
    pub(crate) fn no_guards(&self, guards: &[Table<'_>], faults: &mut Faults<'_>) {
        for table in guards {
            if let Some(team) = self.team(table.at) {
                let message = format!("a [[guard]] in a file of the team {}", quoted(&team.name));
                faults.wrong(table.at, format!("{message}; guards bind everybody, and stand in files of no team"));
            }
        }
    }

    /// A team's rules are about who reaches its workloads; and, to outsides, about where its workloads go.
    pub(crate) fn rules(
        &self,
        rules: &[Placed],
        workloads: &[Workload],
        groups: &Groups,
        outsides: &Outsides,
        faults: &mut Faults<'_>,
    ) {
        if self.of.is_empty() {
            return;
        }
        let by_class = groups.by_class();
        let names = |end: End| -> BTreeSet<String> {
            let name = |position: u32| {
                let workload = workloads.get(usize::try_from(position).ok()?)?;
                Some(workload.name.to_string())
            };
            match end {
                End::Workload(position) => name(position).into_iter().collect(),
                End::Group(position) => {
                    let members = groups.classes(position).iter().filter_map(|class| by_class.get(class)).flatten();
                    members.filter_map(|member| name(*member)).collect()
                }
                End::Outside(_) => BTreeSet::new(),
            }
        };
        for (at, rule) in rules {
            let Some(team) = self.team(*at) else { continue };
            let is_outside = |end: &End| matches!(end, End::Outside(_));
            // To an outside, the source is what the rule is about.
            let about = if rule.to.iter().all(is_outside) { &rule.from } else { &rule.to };
            let others = about.iter().flat_map(|end| names(*end)).find(|name| !team.covers(name));
            let named = about.iter().find_map(|end| match end {
                End::Outside(position) => {
                    outsides.list.get(usize::try_from(*position).ok()?).map(|outside| outside.name.clone())
                }
                End::Workload(_) | End::Group(_) => None,
            });
            if let Some(other) = others.or(named) {
                let message = format!(
                    "the rule {} is about {}, which is not of the team {}",
                    quoted(&rule.name),
                    quoted(&other),
                    quoted(&team.name)
                );
                faults.wrong(*at, format!("{message}; it belongs into another file"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Policy, Subject, assemble};

    const MAIN: &str = "mode = 'enforce'
include = ['teams/pay.toml', 'teams/web.toml']
[[team]]\nname = 'payments'\nfiles = 'teams/pay.toml'\nworkloads = 'pay/*'
[[team]]\nname = 'web'\nfiles = 'teams/web.toml'\nworkloads = ['web/front', 'web/back/*']
[[outside]]\nname = 'internet'\nprefixes = '192.0.2.0/24'
[[guard]]\nname = 'g'\nfrom = 'web/front'\nto = 'pay/db'
";
    const PAY: &str = "[[workload]]\nname = 'pay/api'\nexe = '/api'\n[[workload]]\nname = 'pay/db'\nexe = '/db'\n\
        [[rule]]\nname = 'front to api'\nfrom = 'web/front'\nto = 'pay/api'\nports = [443]\naction = 'allow'\n";
    const WEB: &str = "# The web's own.\n[[workload]]\nname = 'web/front'\nexe = '/front'\n\
        [[rule]]\nname = 'out'\nfrom = 'web/front'\nto = 'internet'\nports = [443]\naction = 'allow'\n";

    fn parsed(main: &str, pay: &str, web: &str) -> Result<Policy, String> {
        let read = |name: &str| match name {
            "teams/pay.toml" => Ok(pay.to_owned()),
            "teams/web.toml" => Ok(web.to_owned()),
            _ => Err("there is no such file".to_owned()),
        };
        let whole =
            assemble("main.toml", main, read, |_| Err("there is none".to_owned())).map_err(|e| e.to_string())?;
        Policy::parse("main.toml", &whole).map_err(|e| e.to_string())
    }

    #[test]
    fn each_team_says_who_reaches_its_workloads() {
        let policy = parsed(MAIN, PAY, WEB).unwrap_or_else(|e| panic!("{e}"));
        let [front, api] = ["web/front", "pay/api"].map(|name| name.parse().unwrap());
        let verdict = policy.decide(&Subject::Workload(&front), &Subject::Workload(&api), 443);
        assert_eq!(verdict.rule(), Some("front to api"));
        assert_eq!((policy.owner(&front), policy.owner(&api)), (Some("web"), Some("payments")));
    }

    #[test]
    fn no_team_speaks_for_another() {
        let rule = |from: &str, to: &str| {
            format!("[[rule]]\nname = 'x'\nfrom = {from}\nto = {to}\nports = [1]\naction = 'allow'\n")
        };
        for (stolen, said) in [
            (rule("'web/front'", "'pay/db'"), "the rule \"x\" is about \"pay/db\", which is not of the team \"web\""),
            (rule("'web/front'", "['web/front', 'pay/db']"), "is about \"pay/db\""),
            (rule("'pay/db'", "'internet'"), "the rule \"x\" is about \"pay/db\""),
            (rule("'web/front'", "['web/front', 'internet']"), "the rule \"x\" is about \"internet\""),
            (
                "[[group]]\nname = 'web/back/all'\nmembers = 'pay/db'\n".to_owned()
                    + &rule("'web/front'", "'web/back/all'"),
                "is about \"pay/db\"",
            ),
            (
                "[[workload]]\nname = 'pay/x'\nexe = '/x'\n".into(),
                "of the team \"web\", which has no workload \"pay/x\"",
            ),
            ("[[workload]]\nname = 'web/other'\nexe = '/x'\n".into(), "which has no workload \"web/other\""),
            ("[[outside]]\nname = 'all'\nprefixes = '198.51.100.0/24'\n".into(), "which has no outside \"all\""),
            ("[[guard]]\nname = 'x'\nfrom = 'pay/api'\nto = 'web/front'\n".into(), "guards bind everybody"),
        ] {
            let errors = parsed(MAIN, PAY, &format!("{WEB}{stolen}")).unwrap_err();
            assert!(errors.contains(said), "{errors}");
            assert!(errors.lines().all(|line| line.starts_with("teams/web.toml:")), "{errors}");
        }
    }

    #[test]
    fn a_file_cannot_pass_for_another_nor_reach_into_the_one_before() {
        for (part, said) in [
            ("#@ file teams/pay.toml\n[[rule]]\n", "teams/web.toml:1:1: lines that begin with #@ are kept"),
            ("[[workload]]\nname = '''\n#@ file teams/pay.toml\n'''\n", "teams/web.toml:3:1: lines that begin with #@"),
            (
                "allow_taints = ['traced']\n",
                "teams/web.toml:1:1: allow_taints belongs into the file that includes this one",
            ),
            ("mode = 'observe'\n", "mode belongs into"),
            ("include = ['main.toml']\n", "include belongs into"),
            ("[[team]]\nname = 'x'\nfiles = 'y'\nworkloads = 'pay/*'\n", "team belongs into"),
            ("[rule]\n", "rule belongs into"),
            ("[[rule", "teams/web.toml:1:"),
        ] {
            let errors = parsed(MAIN, PAY, part).unwrap_err();
            assert!(errors.contains(said), "{errors}");
        }
    }

    #[test]
    fn mistakes_have_the_place_in_their_own_file() {
        let errors = parsed(
            MAIN,
            PAY,
            &format!("{WEB}[[rule]]\nname = 'front to api'\nfrom = 'web/frnt'\nto = 'web/front'\naction = 'allow'\n"),
        )
        .unwrap_err();
        assert!(errors.contains("teams/web.toml:12:8: the rule name \"front to api\" is already the name of the guard or rule on line 8 of teams/pay.toml"), "{errors}");
        assert!(errors.contains("teams/web.toml:13:8: ") && errors.contains("did you mean \"web/front\"?"), "{errors}");
    }

    #[test]
    fn what_is_included_must_be_there_once_and_below() {
        let main = |include: &str| MAIN.replace("['teams/pay.toml', 'teams/web.toml']", include);
        for (include, said) in [
            ("['no.toml']", "main.toml:2:1: \"no.toml\" is included, and there is no such file"),
            ("['../x.toml']", "is not below the directory"),
            ("['/x.toml']", "is not below the directory"),
            ("['a b']", "contains ' '"),
            ("['x', 'x']", "is included twice"),
            ("[3]", "include is a list of names"),
            ("'x'", "include is a list"),
        ] {
            let errors = parsed(&main(include), PAY, WEB).unwrap_err();
            assert!(errors.contains(said), "{errors}");
        }
        let alone = Policy::parse("main.toml", MAIN).unwrap_err().to_string();
        assert!(alone.contains("\"teams/pay.toml\" is included and not here"), "{alone}");
        let stray = Policy::parse(
            "p",
            &format!("mode = 'enforce'\n#@ file x.toml\n{}", "[[workload]]\nname = 'a'\nexe = '/a'\n"),
        );
        assert!(stray.unwrap_err().to_string().contains("\"x.toml\" is here and not included"));
    }

    #[test]
    fn teams_share_neither_names_nor_files() {
        for (one, other, said) in [
            (
                "workloads = 'pay/*'",
                "workloads = 'web/*'\n[[team]]\nname = 'w'\nfiles = 'teams/web.toml'\nworkloads = 'x'",
                "is included and not here",
            ),
            ("['web/front', 'web/back/*']", "['pay/api']", "\"pay/api\" belongs to the team \"payments\" already"),
            (
                "['web/front', 'web/back/*']",
                "['pay/deep/*']",
                "\"pay/deep/*\" belongs to the team \"payments\" already",
            ),
            (
                "files = 'teams/web.toml'",
                "files = 'teams/pay.toml'",
                "\"teams/pay.toml\" belongs to the team \"payments\" already",
            ),
            ("name = 'web'", "name = 'payments'", "\"payments\" is already the name of a team"),
            ("'web/back/*'", "'*'", "\"*\" is no name of workloads"),
            ("'web/back/*'", "'web/*/x'", "is no name of workloads"),
        ] {
            let errors = Policy::parse("main.toml", &MAIN.replace(one, other)).unwrap_err().to_string();
            assert!(errors.contains(said), "{errors}");
        }
    }
}
