//! Which argument of an interpreter is its script. A doubt (an unknown option, code loaded before the script) is
//! an absence with its reason, never a guess.

use super::grammar::{Effect, Grammar};
use crate::refuse::shown;

/// What a command line says about the script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named<'a> {
    /// It names this file.
    Script(&'a [u8]),
    /// It names none, and why.
    Nothing(String),
}

/// Reads a command line as the interpreter would that is called `program` on disk; `None` if that is no interpreter.
pub(crate) fn script<'a>(program: &[u8], arguments: &[&'a [u8]]) -> Option<Named<'a>> {
    let grammar = Grammar::of(program)?;
    let mut reader = Reader { grammar, rest: arguments.iter().skip(1).copied() };
    Some(reader.read())
}

struct Reader<I> {
    grammar: &'static Grammar,
    rest: I,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Reader<I> {
    fn read(&mut self) -> Named<'a> {
        while let Some(argument) = self.rest.next() {
            if let Some(named) = self.argument(argument) {
                return named;
            }
        }
        nothing("it is interactive or reads its program from standard input")
    }

    /// `None`: an option, read on.
    fn argument(&mut self, argument: &'a [u8]) -> Option<Named<'a>> {
        match argument {
            b"-" => self.end_of_options(self.grammar.dash),
            b"--" => self.end_of_options(self.grammar.double_dash),
            [b'-', letters @ ..] => self.option(argument, letters),
            [b'+', letters @ ..] if self.grammar.plus => self.cluster(letters),
            [] => Some(nothing("an argument before the script is empty")),
            [b'@', ..] if self.grammar.argument_files => Some(nothing("it reads its arguments from a file")),
            _ => Some(self.operand(argument)),
        }
    }

    fn end_of_options(&mut self, effect: Effect) -> Option<Named<'a>> {
        match effect {
            Effect::EndOfOptions => Some(match self.rest.next() {
                Some(argument) => self.operand(argument),
                None => nothing("it is interactive or reads its program from standard input"),
            }),
            other => self.apply(other, b"-", None),
        }
    }

    fn operand(&self, argument: &'a [u8]) -> Named<'a> {
        match self.grammar.operand {
            Effect::Script => Named::Script(argument),
            _ => nothing(format!("it runs {}, which is no file it names", shown(argument))),
        }
    }

    fn option(&mut self, whole: &'a [u8], letters: &'a [u8]) -> Option<Named<'a>> {
        let (name, value) = match whole.iter().position(|b| *b == b'=') {
            Some(at) => (whole.get(..at).unwrap_or(whole), whole.get(at + 1..)),
            None => (whole, None),
        };
        if let Some(effect) = self.grammar.long(name) {
            return self.apply(effect, name, value);
        }
        if letters.starts_with(b"-") || self.grammar.short.is_empty() {
            return Some(unknown(name));
        }
        self.cluster(letters)
    }

    /// One-letter options behind one dash.
    fn cluster(&mut self, mut letters: &'a [u8]) -> Option<Named<'a>> {
        while let [letter, after @ ..] = letters {
            let Some(effect) = self.grammar.letter(*letter) else { return Some(unknown(&[b'-', *letter])) };
            letters = match effect {
                Effect::Flag => after,
                Effect::Digits => skip_digits(after),
                Effect::NextArgument => {
                    self.rest.next();
                    after
                }
                Effect::Rest => return None,
                other => {
                    let attached = if after.is_empty() { None } else { Some(after) };
                    return self.apply(other, &[b'-', *letter], attached);
                }
            };
        }
        None
    }

    fn apply(&mut self, effect: Effect, option: &[u8], attached: Option<&'a [u8]>) -> Option<Named<'a>> {
        match effect {
            Effect::Flag | Effect::Digits | Effect::Rest | Effect::EndOfOptions => None,
            Effect::Value | Effect::NextArgument => {
                if attached.is_none() {
                    self.rest.next();
                }
                None
            }
            Effect::Setting => {
                let value = attached.or_else(|| self.rest.next()).unwrap_or_default();
                self.grammar.loads_code(value).then(|| preloads(option))
            }
            Effect::Script => Some(match attached.or_else(|| self.rest.next()) {
                Some(path) => Named::Script(path),
                None => nothing("the script's name is missing"),
            }),
            Effect::Module => {
                let module = attached.or_else(|| self.rest.next()).unwrap_or_default();
                Some(nothing(format!("it runs the module {}", shown(module))))
            }
            Effect::Inline => Some(nothing(format!("its code is given inline ({})", shown(option)))),
            Effect::Stdin => Some(nothing("it reads its program from standard input")),
            Effect::Preload => Some(preloads(option)),
            Effect::Elsewhere => Some(nothing(format!("{} makes it run something else than a script", shown(option)))),
        }
    }
}

fn skip_digits(letters: &[u8]) -> &[u8] {
    let digits = letters.iter().take_while(|b| b.is_ascii_hexdigit() && !b.is_ascii_lowercase() || **b == b'x').count();
    letters.get(digits..).unwrap_or_default()
}

fn nothing<'a>(why: impl Into<String>) -> Named<'a> {
    Named::Nothing(why.into())
}

fn unknown<'a>(option: &[u8]) -> Named<'a> {
    nothing(format!("its option {} is not known here, so its script cannot be told", shown(option)))
}

fn preloads<'a>(option: &[u8]) -> Named<'a> {
    nothing(format!("{} loads other code before the script", shown(option)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> Option<Result<String, String>> {
        let arguments: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        script(arguments[0], &arguments).map(|named| match named {
            Named::Script(path) => Ok(String::from_utf8_lossy(path).into_owned()),
            Named::Nothing(why) => Err(why),
        })
    }

    #[track_caller]
    fn names(line: &str, path: &str) {
        assert_eq!(read(line), Some(Ok(path.to_owned())), "{line}");
    }

    #[track_caller]
    fn names_nothing(line: &str, because: &str) {
        match read(line) {
            Some(Err(why)) if why.contains(because) => {}
            other => panic!("{line}: expected a reason with {because:?}, got {other:?}"),
        }
    }

    #[test]
    fn python() {
        names("python3 app.py -c x", "app.py");
        names("python3.11 -u -W error -Xdev -bb /srv/app.py", "/srv/app.py");
        names("python3 -OOu app.py", "app.py");
        names("python3 --check-hash-based-pycs always app.py", "app.py");
        names("python3 -i -- -odd.py", "-odd.py");
        names("pypy3 app.py", "app.py");
        names_nothing("python3 -c print(1)", "inline (-c)");
        names_nothing("python3 -Ic print(1) app.py", "inline (-c)");
        names_nothing("python3 -cpass app.py", "inline (-c)");
        names_nothing("python3 -m http.server", "module http.server");
        names_nothing("python3 -Imhttp.server", "module http.server");
        names_nothing("python3", "interactive");
        names_nothing("python3 -W error", "interactive");
        names_nothing("python3 - app.py", "standard input");
        names_nothing("python3 --surprise app.py", "not known here");
        names_nothing("python3 -Z app.py", "not known here");
    }

    #[test]
    fn shells() {
        for shell in ["bash", "sh", "dash", "zsh"] {
            names(&format!("{shell} run.sh -c"), "run.sh");
            names(&format!("{shell} -eu -o pipefail run.sh"), "run.sh");
            names(&format!("{shell} +x run.sh"), "run.sh");
            names(&format!("{shell} - run.sh"), "run.sh");
            names(&format!("{shell} -- run.sh"), "run.sh");
            names_nothing(&format!("{shell} -c exit"), "inline");
            names_nothing(&format!("{shell} -ec exit run.sh"), "inline");
            names_nothing(&format!("{shell} -s run.sh"), "standard input");
            names_nothing(shell, "interactive");
        }
        names("bash -eou pipefail run.sh", "run.sh");
        names("bash --norc --rcfile x -O extglob run.sh", "run.sh");
        names_nothing("bash --unheard run.sh", "not known here");
    }

    #[test]
    fn perl() {
        names("perl -w -I lib -T app.pl", "app.pl");
        names("perl5.36.0 -Ilib -l012 -0777 -CSDA app.pl", "app.pl");
        names("perl -lwi.bak app.pl", "app.pl");
        names_nothing("perl -wne print app.pl", "inline (-e)");
        names_nothing("perl -E say", "inline (-E)");
        names_nothing("perl -MEvil app.pl", "-M loads other code");
        names_nothing("perl -S app.pl", "something else");
    }

    #[test]
    fn ruby() {
        names("ruby -w -I lib --encoding utf-8 app.rb", "app.rb");
        names("ruby3.1 -W0 -Ku --disable=gems app.rb", "app.rb");
        names_nothing("ruby -e 1", "inline");
        names_nothing("ruby -revil app.rb", "loads other code");
        names_nothing("ruby --require evil app.rb", "not known here");
    }

    #[test]
    fn node() {
        names("node app.js --eval", "app.js");
        names("nodejs --no-warnings --max-old-space-size=512 --title x /srv/app.js", "/srv/app.js");
        names("node --inspect=0.0.0.0:1 --conditions dev app.js", "app.js");
        names_nothing("node -e 1", "inline");
        names_nothing("node -pe 1", "inline");
        names_nothing("node --eval=1 app.js", "inline");
        names_nothing("node -r evil app.js", "-r loads other code");
        names_nothing("node --require=evil app.js", "--require loads other code");
        names_nothing("node --import evil app.js", "loads other code");
        names_nothing("node --test app.js", "something else");
        names_nothing("node --brand-new value app.js", "not known here");
        names_nothing("node", "interactive");
    }

    #[test]
    fn java() {
        names("java -jar app.jar -cp x", "app.jar");
        names("java -Xmx1g -XX:+UseG1GC -Dx=y -ea -cp lib -jar /srv/app.jar", "/srv/app.jar");
        names("java --add-opens java.base/java.lang=ALL-UNNAMED --add-modules=x -jar app.jar", "app.jar");
        names_nothing("java -cp lib com.example.Main", "runs com.example.Main");
        names_nothing("java -m app/com.example.Main", "module app/com.example.Main");
        names_nothing("java -javaagent:evil.jar -jar app.jar", "loads other code");
        names_nothing("java -agentpath:/evil.so -jar app.jar", "loads other code");
        names_nothing("java -Xbootclasspath/a:evil.jar -jar app.jar", "loads other code");
        names_nothing("java @options -jar app.jar", "arguments from a file");
        names_nothing("java -unheard -jar app.jar", "not known here");
    }

    #[test]
    fn php() {
        names("php app.php -r", "app.php");
        names("php8.2 -d memory_limit=1G -n -f app.php", "app.php");
        names("php --file app.php", "app.php");
        names_nothing("php -r echo", "inline");
        names_nothing("php -S localhost:80 app.php", "something else");
        names_nothing("php -d auto_prepend_file=/evil.php app.php", "loads other code");
        names_nothing("php -dextension=evil app.php", "loads other code");
        names_nothing("php -- app.php", "standard input");
    }

    #[test]
    fn lua() {
        names("lua5.4 -W app.lua -l", "app.lua");
        names_nothing("lua -e x=1 app.lua", "inline");
        names_nothing("lua -levil app.lua", "loads other code");
        names_nothing("lua -", "standard input");
    }

    #[test]
    fn other_programs_are_no_interpreters() {
        for program in ["nginx", "php-fpm8.2", "pythonista", "shutdown", "bashful", "javac", "nodemon", ""] {
            assert_eq!(read(&format!("{program} app.py")), None, "{program}");
        }
    }

    #[test]
    fn an_empty_command_line_names_nothing() {
        assert!(matches!(script(b"python3", &[]), Some(Named::Nothing(_))));
        names_nothing("python3  app.py", "empty");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(
            program in "python3|bash|perl|ruby|node|java|php|lua|zsh|.*",
            bytes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..8),
        ) {
            let arguments: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
            if let Some(Named::Script(path)) = script(program.as_bytes(), &arguments) {
                prop_assert!(arguments.iter().any(|a| a.ends_with(path)));
            }
        }
    }
}
