//! Which argument of an interpreter is its code. A doubt (an unknown option, code loaded before the script, code from
//! two places) is an absence with its reason, never a guess.

use super::grammar::{Effect, Grammar, loads_category};
use crate::refuse::shown;

/// What a command line says about the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named<'a> {
    /// It names this file.
    Script(&'a [u8]),
    /// This is the code.
    Inline(&'a [u8]),
    /// It comes in through standard input, some or all of it.
    Stdin,
    /// It names none, and why.
    Nothing(String),
}

/// A program that runs code, and what its command line says about that.
#[derive(Debug)]
pub(crate) struct Interpreter<'a> {
    /// How it reads command lines.
    pub(crate) grammar: &'static Grammar,
    /// What this one says.
    pub(crate) code: Named<'a>,
}

/// Reads a command line as the interpreter would that is called `program` on disk; `None` if that is no interpreter.
/// Where the command line is not `whole`, what a missing argument could change is not told.
pub(crate) fn interpreter<'a>(program: &[u8], arguments: &[&'a [u8]], whole: bool) -> Option<Interpreter<'a>> {
    let (grammar, names) = Grammar::of(program, arguments)?;
    if grammar.login && arguments.get(names.saturating_sub(1)).is_some_and(|name| name.starts_with(b"-")) {
        let code = nothing("it is a login shell, which loads other code before the script");
        return Some(Interpreter { grammar, code });
    }
    let rest = arguments.iter().skip(names).copied();
    let mut reader =
        Reader { grammar, rest, operand: grammar.operand, verb: true, found: None, interactive: false, whole };
    Some(Interpreter { grammar, code: reader.read() })
}

struct Reader<'a, I> {
    grammar: &'static Grammar,
    rest: I,
    /// What the first argument that is no option will be.
    operand: Effect,
    /// Whether a verb may still come.
    verb: bool,
    /// Code that options gave.
    found: Option<Named<'a>>,
    interactive: bool,
    whole: bool,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Reader<'a, I> {
    fn read(&mut self) -> Named<'a> {
        let code = self.code();
        match code {
            Named::Script(_) | Named::Inline(_) if self.interactive => Named::Stdin,
            code => code,
        }
    }

    fn code(&mut self) -> Named<'a> {
        while let Some(argument) = self.rest.next() {
            if let Some(named) = self.argument(argument) {
                return named;
            }
        }
        self.end()
    }

    /// No argument is left.
    fn end(&mut self) -> Named<'a> {
        if !self.whole {
            return nothing("its command line is longer than what was recorded of it");
        }
        match (self.found.take(), self.operand) {
            (Some(found), _) => found,
            // It reads its program from there, or a person types it.
            (None, Effect::Script) if self.grammar.operand == Effect::Script => Named::Stdin,
            (None, _) => nothing("its command line gives it no code"),
        }
    }

    /// `None`: an option, read on.
    fn argument(&mut self, argument: &'a [u8]) -> Option<Named<'a>> {
        match argument {
            b"-" => self.end_of_options(self.grammar.dash),
            b"--" => self.end_of_options(self.grammar.double_dash),
            [b'-', letters @ ..] => self.option(argument, letters),
            [b'+', letters @ ..] if self.grammar.plus => self.cluster(letters),
            [] if self.operand != Effect::Inline => Some(nothing("an argument before the script is empty")),
            [b'@', ..] if self.grammar.argument_files => Some(nothing("it reads its arguments from a file")),
            _ => match self.verb(argument) {
                Some(effect) => self.apply(effect, argument, None),
                None => Some(self.operand(argument)),
            },
        }
    }

    /// A word in front of everything else.
    fn verb(&mut self, word: &[u8]) -> Option<Effect> {
        let first = std::mem::replace(&mut self.verb, false);
        self.grammar.verb(word).filter(|_| first)
    }

    fn end_of_options(&mut self, effect: Effect) -> Option<Named<'a>> {
        match effect {
            Effect::EndOfOptions => Some(match self.rest.next() {
                Some(argument) => self.operand(argument),
                None => self.end(),
            }),
            other => self.apply(other, b"-", None),
        }
    }

    /// The first argument that is no option.
    fn operand(&mut self, argument: &'a [u8]) -> Named<'a> {
        match (self.found.take(), self.operand) {
            (Some(_), _) if self.grammar.operand_besides => several(),
            (Some(found), _) => found,
            (None, Effect::Script) => self.file(argument),
            (None, Effect::Inline) => Named::Inline(argument),
            (None, _) => nothing(format!("it runs {}, which is no file it names", shown(argument))),
        }
    }

    /// What an interpreter is told to open.
    fn file(&self, path: &'a [u8]) -> Named<'a> {
        match path {
            b"-" => Named::Stdin,
            url if self.grammar.is_url(url) => nothing(format!("it runs {}, which is no file", shown(url))),
            path => Named::Script(path),
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
                Effect::Interactive | Effect::CodeFollows => {
                    self.apply(effect, &[b'-', *letter], None);
                    after
                }
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
            Effect::Value | Effect::NextArgument => self.value(attached).map(|_| ()).and(None),
            Effect::Setting => {
                let value = self.value(attached).unwrap_or_default();
                self.grammar.loads_code(value).then(|| preloads(option))
            }
            Effect::Warnings => {
                let value = self.value(attached).unwrap_or_default();
                loads_category(value).then(|| preloads(option))
            }
            Effect::Script => {
                let script = self.value(attached).map(|path| self.file(path));
                self.add(script)
            }
            Effect::Piece => {
                let code = self.value(attached).map(Named::Inline);
                self.add(code)
            }
            Effect::Inline => {
                self.operand = Effect::Inline;
                Some(self.value(attached).map_or_else(|| self.end(), Named::Inline))
            }
            Effect::Module => {
                let module = self.value(attached).unwrap_or_default();
                Some(nothing(format!("it runs the module {}", shown(module))))
            }
            Effect::ScriptFollows => self.expect(Effect::Script),
            Effect::CodeFollows => self.expect(Effect::Inline),
            Effect::Interactive => {
                self.interactive = true;
                None
            }
            Effect::Stdin => Some(Named::Stdin),
            Effect::Preload => Some(preloads(option)),
            Effect::Pattern => Some(nothing(format!("what its option {} has may be code", shown(option)))),
            Effect::Away => Some(nothing(format!("{} has it look for the script in another directory", shown(option)))),
            Effect::Elsewhere => Some(nothing(format!("{} makes it run something else than a script", shown(option)))),
        }
    }

    fn value(&mut self, attached: Option<&'a [u8]>) -> Option<&'a [u8]> {
        attached.or_else(|| self.rest.next())
    }

    fn expect(&mut self, operand: Effect) -> Option<Named<'a>> {
        self.operand = operand;
        None
    }

    /// Code that an option gave: the first is kept, a second is one too many.
    fn add(&mut self, named: Option<Named<'a>>) -> Option<Named<'a>> {
        let Some(named) = named else { return Some(self.end()) };
        self.found.replace(named).map(|_| several())
    }
}

fn skip_digits(letters: &[u8]) -> &[u8] {
    let digits = letters.iter().take_while(|b| b.is_ascii_hexdigit() && !b.is_ascii_lowercase() || **b == b'x').count();
    letters.get(digits..).unwrap_or_default()
}

fn nothing<'a>(why: impl Into<String>) -> Named<'a> {
    Named::Nothing(why.into())
}

fn several<'a>() -> Named<'a> {
    nothing("its code comes from several places")
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
        interpreter(arguments[0], &arguments, true).map(|i| match i.code {
            Named::Script(path) => Ok(String::from_utf8_lossy(path).into_owned()),
            Named::Inline(code) => Err(format!("inline {}", String::from_utf8_lossy(code))),
            Named::Stdin => Err("standard input".to_owned()),
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

    #[track_caller]
    fn inline(line: &str, code: &str) {
        assert_eq!(read(line), Some(Err(format!("inline {code}"))), "{line}");
    }

    #[test]
    fn python() {
        names("python3 app.py -c x", "app.py");
        names("python3.11 -u -W error -Xdev -bb /srv/app.py", "/srv/app.py");
        names("python3 -OOu app.py", "app.py");
        names("python3 --check-hash-based-pycs always app.py", "app.py");
        names("python3 -u -- -odd.py", "-odd.py");
        names_nothing("python3 -i app.py", "standard input");
        names_nothing("python3 -ic pass", "standard input");
        names("pypy3 app.py", "app.py");
        inline("python3 -c print(1)", "print(1)");
        names_nothing("python3 -c", "no code");
        inline("python3 -Ic print(1) app.py", "print(1)");
        inline("python3 -c print(1) -c evil", "print(1)");
        inline("python3 -cpass app.py", "pass");
        names_nothing("python3 -m http.server", "module http.server");
        names_nothing("python3 -Imhttp.server", "module http.server");
        names_nothing("python3", "standard input");
        names_nothing("python3 -W error", "standard input");
        names_nothing("python3 - app.py", "standard input");
        names_nothing("python3 --surprise app.py", "not known here");
        names_nothing("python3 -Z app.py", "not known here");
        names("python3 -W error::DeprecationWarning -Wignore app.py", "app.py");
        names_nothing("python3 -W error::evil.Category app.py", "-W loads other code");
        names_nothing("python3 -W ignore,error::evil.Category app.py", "-W loads other code");
        names_nothing("python3 -X presite=evil app.py", "-X loads other code");
        names_nothing("python3 -- -", "standard input");
        names_nothing("python3 https://evil.example/app.py", "is no file");
        names("python3 odd:name.py", "odd:name.py");
    }

    #[test]
    fn shells() {
        for shell in ["bash", "sh", "dash", "zsh"] {
            names(&format!("{shell} run.sh -c"), "run.sh");
            names(&format!("{shell} -eu -o pipefail run.sh"), "run.sh");
            names(&format!("{shell} +x run.sh"), "run.sh");
            names(&format!("{shell} - run.sh"), "run.sh");
            names(&format!("{shell} -- run.sh"), "run.sh");
            inline(&format!("{shell} -c exit"), "exit");
            inline(&format!("{shell} -ec exit run.sh"), "exit");
            inline(&format!("{shell} -c -e exit -c evil"), "exit");
            inline(&format!("{shell} -o pipefail -c -- exit run.sh"), "exit");
            names_nothing(&format!("{shell} -c"), "no code");
            names_nothing(&format!("{shell} -s run.sh"), "standard input");
            names_nothing(shell, "standard input");
            names_nothing(&format!("{shell} -i run.sh"), "-i loads other code");
            names_nothing(&format!("{shell} -lc exit"), "-l loads other code");
        }
        for login in ["-bash run.sh", "-/bin/bash run.sh", "-bash -c exit"] {
            let arguments: Vec<&[u8]> = login.split(' ').map(str::as_bytes).collect();
            let code = interpreter(b"bash", &arguments, true).unwrap().code;
            assert!(matches!(&code, Named::Nothing(why) if why.contains("login shell")), "{login}: {code:?}");
        }
        names_nothing("bash -i --rcfile x run.sh", "-i loads other code");
        names_nothing("bash --login run.sh", "--login loads other code");
        names("bash -eou pipefail run.sh", "run.sh");
        names("bash --norc --rcfile x -O extglob run.sh", "run.sh");
        names_nothing("bash --unheard run.sh", "not known here");
    }

    #[test]
    fn perl() {
        names("perl -w -I lib -T app.pl", "app.pl");
        names("perl5.36.0 -Ilib -l012 -0777 -CSDA app.pl", "app.pl");
        names("perl -lwi.bak app.pl", "app.pl");
        inline("perl -wne print app.pl", "print");
        inline("perl -E say", "say");
        names_nothing("perl -e print -e evil", "several places");
        names_nothing("perl -e print -Mevil", "-M loads other code");
        names_nothing("perl -MEvil app.pl", "-M loads other code");
        names_nothing("perl -S app.pl", "something else");
        names_nothing("perl -x app.txt", "something else");
        names_nothing("perl -F/,/);evil# app.pl", "-F has may be code");
        names_nothing("perl -anF/,/);evil# -e print", "-F has may be code");
    }

    #[test]
    fn ruby() {
        names("ruby -w -I lib --encoding utf-8 app.rb", "app.rb");
        names("ruby3.1 -W0 -Ku --disable=gems app.rb", "app.rb");
        inline("ruby -e 1", "1");
        names_nothing("ruby -e 1 -revil", "loads other code");
        names_nothing("ruby -revil app.rb", "loads other code");
        names_nothing("ruby --require evil app.rb", "not known here");
        for away in ["-C /tmp", "-C/tmp", "-X /tmp", "-wC /tmp", "-x/tmp", "-x"] {
            names_nothing(&format!("ruby {away} app.rb"), "in another directory");
        }
    }

    #[test]
    fn node() {
        names("node app.js --eval", "app.js");
        names("nodejs --no-warnings --max-old-space-size=512 --title x /srv/app.js", "/srv/app.js");
        names("node --inspect=0.0.0.0:1 --conditions dev app.js", "app.js");
        inline("node -e 1", "1");
        inline("node -pe 1", "1");
        inline("node --eval=1 app.js", "1");
        names_nothing("node -e 1 --require evil", "loads other code");
        names_nothing("node -i app.js", "standard input");
        names_nothing("node -r evil app.js", "-r loads other code");
        names_nothing("node --require=evil app.js", "--require loads other code");
        names_nothing("node --import evil app.js", "loads other code");
        names_nothing("node --test app.js", "something else");
        names_nothing("node --brand-new value app.js", "not known here");
        names_nothing("node inspect app.js", "something else");
        names_nothing("node", "standard input");
    }

    #[test]
    fn java() {
        names("java -jar app.jar -cp x", "app.jar");
        names("java -jar -Dx=y app.jar", "app.jar");
        names_nothing("java -jar -javaagent:evil.jar app.jar", "loads other code");
        names_nothing("java -jar", "no code");
        names_nothing("java", "no code");
        names("java -Xmx1g -XX:+UseG1GC -Dx=y -ea -cp lib -jar /srv/app.jar", "/srv/app.jar");
        names("java --add-opens java.base/java.lang=ALL-UNNAMED --add-modules=x -jar app.jar", "app.jar");
        names_nothing("java -cp lib com.example.Main", "runs com.example.Main");
        names_nothing("java -m app/com.example.Main", "module app/com.example.Main");
        names_nothing("java -javaagent:evil.jar -jar app.jar", "loads other code");
        names_nothing("java -agentpath:/evil.so -jar app.jar", "loads other code");
        names_nothing("java -Xbootclasspath/a:evil.jar -jar app.jar", "loads other code");
        names_nothing("java @options -jar app.jar", "arguments from a file");
        names_nothing("java -XX:SharedArchiveFile=evil.jsa -jar app.jar", "loads other code");
        names_nothing("java -unheard -jar app.jar", "not known here");
    }

    #[test]
    fn php() {
        names("php app.php -r", "app.php");
        names("php8.2 -d memory_limit=1G -n -f app.php", "app.php");
        names("php --file app.php", "app.php");
        inline("php -r echo", "echo");
        names_nothing("php -B a -R b", "several places");
        names_nothing("php -f app.php -d auto_prepend_file=/evil.php", "loads other code");
        names_nothing("php -S localhost:80 app.php", "something else");
        names_nothing("php -d auto_prepend_file=/evil.php app.php", "loads other code");
        names_nothing("php -dextension=evil app.php", "loads other code");
        names_nothing("php -- app.php", "standard input");
        for line in ["a=1\nauto_prepend_file=/evil.php", "a=1\r  extension=evil", "[PATH=/]\nzend_extension=evil"] {
            let arguments = [b"php", b"-d".as_slice(), line.as_bytes(), b"app.php"];
            let code = interpreter(b"php", &arguments, true).unwrap().code;
            assert!(matches!(&code, Named::Nothing(why) if why.contains("loads other code")), "{line}: {code:?}");
        }
    }

    #[test]
    fn lua() {
        names("lua5.4 -W app.lua -l", "app.lua");
        inline("lua -e x=1", "x=1");
        names_nothing("lua -e x=1 app.lua", "several places");
        names_nothing("lua -levil app.lua", "loads other code");
        names_nothing("lua -", "standard input");
    }

    #[test]
    fn deno() {
        names("deno run -A --allow-net=a.example app.ts --preload", "app.ts");
        names("deno app.ts run", "app.ts");
        names("deno run run", "run");
        inline("deno eval 1", "1");
        names_nothing("deno", "standard input");
        names_nothing("deno repl", "standard input");
        names_nothing("deno test a.ts", "something else");
        names_nothing("deno run --import-map x app.ts", "loads other code");
        names_nothing("deno run --unheard app.ts", "not known here");
        for url in
            ["https://evil.example/app.ts", "npm:evil", "jsr:@evil/app", "data:text/javascript,1", "file:///app.ts"]
        {
            names_nothing(&format!("deno run -A {url}"), "is no file");
            names_nothing(&format!("deno {url}"), "is no file");
        }
        names("deno run ./odd:name.ts", "./odd:name.ts");
        names_nothing("deno check app.ts", "something else");
    }

    #[test]
    fn tcl_and_awk() {
        names("tclsh -encoding utf-8 app.tcl x", "app.tcl");
        names_nothing("tclsh", "standard input");
        names("mawk -F : -f app.awk data", "app.awk");
        names("gawk --file=app.awk", "app.awk");
        inline("awk {print} data", "{print}");
        inline("awk -v a=b -- {print} -f", "{print}");
        names_nothing("awk -f a.awk -f b.awk", "several places");
        names_nothing("awk -f -", "standard input");
        names_nothing("gawk -f a.awk -e evil", "several places");
        names_nothing("mawk -W exec {print}", "not known here");
        names_nothing("gawk -i evil {print}", "loads other code");
    }

    #[test]
    fn one_program_that_is_many_is_told_by_its_name() {
        let busybox = |line: &'static str| {
            let arguments: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            interpreter(b"busybox", &arguments, true).map(|i| i.code)
        };
        assert!(matches!(busybox("-sh run.sh"), Some(Named::Nothing(why)) if why.contains("login shell")));
        for line in ["sh run.sh", "/bin/ash run.sh", "busybox sh run.sh", "/bin/busybox ash run.sh"] {
            assert_eq!(busybox(line), Some(Named::Script(b"run.sh")), "{line}");
        }
        assert_eq!(busybox("awk {print}"), Some(Named::Inline(b"{print}")));
        assert_eq!(busybox("httpd -f"), None);
        assert_eq!(busybox("busybox"), None);
    }

    #[test]
    fn what_was_cut_off_is_not_guessed() {
        let cut = |line: &'static str| {
            let arguments: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
            interpreter(arguments[0], &arguments, false).map(|i| i.code)
        };
        assert_eq!(cut("python3 app.py"), Some(Named::Script(b"app.py")));
        for line in ["python3 -c", "python3", "perl -e print", "bash -c", "bash -e --", "java -jar"] {
            assert!(matches!(cut(line), Some(Named::Nothing(why)) if why.contains("longer")), "{line}");
        }
    }

    #[test]
    fn other_programs_are_no_interpreters() {
        for program in ["nginx", "php-fpm8.2", "pythonista", "shutdown", "bashful", "javac", "nodemon", ""] {
            assert_eq!(read(&format!("{program} app.py")), None, "{program}");
        }
    }

    #[test]
    fn an_empty_command_line_names_nothing() {
        assert!(matches!(interpreter(b"python3", &[], true), Some(Interpreter { code: Named::Stdin, .. })));
        names_nothing("python3  app.py", "empty");
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(
            program in "python3|bash|perl|ruby|node|deno|java|php|lua|zsh|awk|tclsh|busybox|.*",
            bytes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..8),
        ) {
            let arguments: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
            if let Some(Interpreter { code: Named::Script(code) | Named::Inline(code), .. }) = interpreter(program.as_bytes(), &arguments, true) {
                prop_assert!(arguments.iter().any(|a| a.ends_with(code)));
            }
        }
    }
}
