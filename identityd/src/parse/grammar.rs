//! The options of each interpreter, from its manual page: which take a value, which carry code, which load code.

/// What an option, or an argument that is none, does to the search for the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    Flag,
    /// Takes a value: what is attached to it, else the next argument.
    Value,
    /// Takes the next argument although more letters follow (a shell's `-eo pipefail`).
    NextArgument,
    /// All that is attached belongs to it; the next argument does not.
    Rest,
    /// Attached digits belong to it; letters after them are options again.
    Digits,
    /// Takes a value that may be a setting which loads code.
    Setting,
    /// Takes a filter of warnings: the category in its third part may be one of a module, which is loaded.
    Warnings,
    /// Its value is a script; more options may follow.
    Script,
    /// Its value is a module to run.
    Module,
    /// Its value is all the code there is; what follows are arguments for it.
    Inline,
    /// Its value is code; more options may follow.
    Piece,
    /// The first argument that is no option is a script.
    ScriptFollows,
    /// The first argument that is no option is code.
    CodeFollows,
    /// The program comes from standard input.
    Stdin,
    /// What comes in through standard input is code too.
    Interactive,
    /// Loads code before the script.
    Preload,
    /// What is attached to it becomes part of the code.
    Pattern,
    /// Changes its directory before it looks for the script.
    Away,
    /// Runs something that is not a script given by its path.
    Elsewhere,
    /// What follows is the script.
    EndOfOptions,
}

use Effect::{
    Away, CodeFollows, Digits, Elsewhere, EndOfOptions, Flag, Inline, Interactive, Module, NextArgument, Pattern,
    Piece, Preload, Rest, Script, ScriptFollows, Setting, Stdin, Value, Warnings,
};

/// How one interpreter reads its command line.
#[derive(Debug)]
pub(crate) struct Grammar {
    /// File names without the version, e.g. `python` for `python3.11`.
    names: &'static [&'static str],
    /// Letters behind one dash.
    pub(crate) short: &'static [(&'static str, Effect)],
    /// Whole options, with their dashes.
    long: &'static [(&'static str, Effect)],
    /// Beginnings of whole options.
    prefixes: &'static [(&'static str, Effect)],
    /// Settings (`-d name=value`) that load code.
    loaders: &'static [&'static str],
    /// A lone `-`.
    pub(crate) dash: Effect,
    /// A lone `--`.
    pub(crate) double_dash: Effect,
    /// `+x` is an option too.
    pub(crate) plus: bool,
    /// `@file` holds more arguments.
    pub(crate) argument_files: bool,
    /// Called with a `-` before its name it loads a profile first.
    pub(crate) login: bool,
    /// Whatever begins like a URL is one (`npm:`, `data:`), not only what has `://` in it.
    pub(crate) urls: bool,
    /// What the first argument that is no option is.
    pub(crate) operand: Effect,
    /// It is that besides code given by options; else it is an argument for that code.
    pub(crate) operand_besides: bool,
    /// Words that can come first, with what they make of the rest.
    verbs: &'static [(&'static str, Effect)],
    /// Variables of the environment that make it run code before the script.
    variables: &'static [&'static str],
    /// Beginnings of such variables.
    variable_prefixes: &'static [&'static str],
    /// Variables of the environment whose value is expanded, commands in it among them.
    expanded: &'static [&'static str],
    /// Variables of the environment that hold more options.
    option_variables: &'static [&'static str],
}

impl Grammar {
    /// The grammar of a program with this file name that was called with these arguments, and how many of them are its
    /// name.
    pub(crate) fn of(program: &[u8], arguments: &[&[u8]]) -> Option<(&'static Self, usize)> {
        if !MANY_IN_ONE.iter().any(|name| name.as_bytes() == program) {
            return Some((Self::named(program)?, 1));
        }
        let names = arguments.iter().take(2).map(|argument| applet(argument));
        let (at, applet) =
            names.enumerate().find(|(_, name)| !MANY_IN_ONE.iter().any(|one| one.as_bytes() == *name))?;
        Some((Self::named(applet)?, at + 1))
    }

    /// That of a program whose command line is not known. One of many in one file could be a shell.
    pub(crate) fn at_worst(program: &[u8]) -> Option<&'static Self> {
        let many = MANY_IN_ONE.iter().any(|name| name.as_bytes() == program);
        Self::named(if many { b"sh" } else { program })
    }

    fn named(program: &[u8]) -> Option<&'static Self> {
        let version = |b: &u8| b.is_ascii_digit() || matches!(b, b'.' | b'-');
        let fits = |name: &str| match program.strip_prefix(name.as_bytes()) {
            // `python3.13t`, `python3.11d`: builds of one version.
            Some([version_part @ .., b'd' | b't' | b'm']) if !version_part.is_empty() => {
                version_part.iter().all(version)
            }
            Some(rest) => rest.iter().all(version),
            None => false,
        };
        GRAMMARS.iter().copied().find(|g| g.names.iter().any(|name| fits(name)))
    }

    /// The effect of a letter.
    pub(crate) fn letter(&self, letter: u8) -> Option<Effect> {
        self.short.iter().find(|(letters, _)| letters.bytes().any(|l| l == letter)).map(|(_, effect)| *effect)
    }

    /// The effect of a whole option, without its `=value`.
    pub(crate) fn long(&self, name: &[u8]) -> Option<Effect> {
        let whole = self.long.iter().find(|(option, _)| option.as_bytes() == name);
        let found = whole.or_else(|| self.prefixes.iter().find(|(start, _)| name.starts_with(start.as_bytes())));
        found.map(|(_, effect)| *effect)
    }

    /// The effect of a word that comes first.
    pub(crate) fn verb(&self, word: &[u8]) -> Option<Effect> {
        self.verbs.iter().find(|(verb, _)| verb.as_bytes() == word).map(|(_, effect)| *effect)
    }

    /// Whether this variable of the environment makes it run code before the script. Where it only looks for modules
    /// (`PYTHONPATH`) is no such thing: it does not tell what they are.
    pub(crate) fn loads_by(&self, variable: &[u8], value: &[u8]) -> bool {
        let among = |names: &[&str]| names.iter().any(|name| name.as_bytes() == variable);
        let mut options = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        among(self.variables)
            || self.variable_prefixes.iter().any(|start| variable.starts_with(start.as_bytes()))
            || among(self.expanded)
                && COMMANDS.iter().any(|start| value.windows(start.len()).any(|part| part == *start))
            || among(self.option_variables) && options.any(|option| self.may_load(option))
    }

    /// Whether an option is not known to be harmless.
    fn may_load(&self, option: &[u8]) -> bool {
        let name = option.split(|b| *b == b'=').next().unwrap_or(option);
        match option {
            [b'@', ..] => self.argument_files,
            [b'-', letters @ ..] => self.long(name).map_or_else(|| self.letters_may_load(letters), may_load),
            // The value of an option.
            _ => false,
        }
    }

    fn letters_may_load(&self, letters: &[u8]) -> bool {
        let mut effects = letters.iter().map(|letter| self.letter(*letter));
        let telling = effects.find(|effect| *effect != Some(Flag));
        letters.is_empty() || telling.is_some_and(|effect| effect.is_none_or(may_load))
    }

    /// Whether a setting, or another one on a line of its own in its value, loads code.
    pub(crate) fn loads_code(&self, setting: &[u8]) -> bool {
        let mut lines = setting.split(|b| matches!(b, b'\n' | b'\r')).map(<[u8]>::trim_ascii_start);
        lines.any(|line| self.loaders.iter().any(|name| line.starts_with(name.as_bytes())))
    }

    /// Whether this is the name of something that is fetched.
    pub(crate) fn is_url(&self, operand: &[u8]) -> bool {
        let scheme = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'.' | b'-');
        let Some(at) = operand.iter().position(|b| *b == b':') else { return false };
        let (name, rest) = operand.split_at(at);
        let is_scheme = name.first().is_some_and(u8::is_ascii_alphabetic) && name.iter().all(scheme);
        is_scheme && (self.urls || rest.starts_with(b"://"))
    }
}

/// How a shell begins the commands in a text that it expands.
const COMMANDS: [&[u8]; 4] = [b"$(", b"`", b"${ ", b"${|"];

/// Whether a filter of warnings (`action:message:category:module:line`) has a module loaded for its category.
pub(crate) fn loads_category(filter: &[u8]) -> bool {
    let mut filters = filter.split(|b| *b == b',');
    filters.any(|one| one.split(|b| *b == b':').nth(2).is_some_and(|category| category.contains(&b'.')))
}

fn may_load(effect: Effect) -> bool {
    !matches!(effect, Flag | Value | Rest | Digits)
}

/// Programs that are many programs, told by the name they are called by.
const MANY_IN_ONE: [&str; 2] = ["busybox", "toybox"];

/// A name as such a program reads it: without directories, and without the dash of a login shell.
fn applet(argument: &[u8]) -> &[u8] {
    let name = argument.rsplit(|b| *b == b'/').next().unwrap_or_default();
    name.strip_prefix(b"-").unwrap_or(name)
}

/// What most interpreters have in common.
const USUAL: Grammar = Grammar {
    names: &[],
    short: &[],
    long: &[],
    prefixes: &[],
    loaders: &[],
    dash: Stdin,
    double_dash: EndOfOptions,
    plus: false,
    argument_files: false,
    login: false,
    urls: false,
    operand: Script,
    operand_besides: false,
    verbs: &[],
    variables: &[],
    variable_prefixes: &[],
    expanded: &[],
    option_variables: &[],
};

static GRAMMARS: [&Grammar; 13] =
    [&PYTHON, &BASH, &POSIX_SHELL, &ZSH, &PERL, &RUBY, &NODE, &DENO, &JAVA, &PHP, &LUA, &TCL, &AWK];

/// python(1).
static PYTHON: Grammar = Grammar {
    names: &["python", "pypy"],
    short: &[
        ("bBdEhIOPqRsStuvVx3?", Flag),
        ("i", Interactive),
        ("Q", Value),
        ("W", Warnings),
        ("X", Setting),
        ("c", Inline),
        ("m", Module),
    ],
    long: &[
        ("--check-hash-based-pycs", Value),
        ("--help", Flag),
        ("--help-all", Flag),
        ("--help-env", Flag),
        ("--help-xoptions", Flag),
        ("--version", Flag),
    ],
    loaders: &["presite"],
    variables: &["PYTHONINSPECT", "PYTHON_PRESITE"],
    ..USUAL
};

/// bash(1). `-o` and `-O` take the next argument wherever they stand in a cluster. An interactive shell and one of a login
/// read other files first; any shell takes functions from its environment, and expands the prompt of `-x`.
static BASH: Grammar = Grammar {
    names: &["bash", "rbash"],
    short: &[("abefhkmnprtuvxBCDEHPT", Flag), ("il", Preload), ("oO", NextArgument), ("c", CodeFollows), ("s", Stdin)],
    long: &[
        ("--rcfile", Value),
        ("--init-file", Value),
        ("--login", Preload),
        ("--noprofile", Flag),
        ("--norc", Flag),
        ("--noediting", Flag),
        ("--posix", Flag),
        ("--restricted", Flag),
        ("--verbose", Flag),
        ("--version", Flag),
        ("--help", Flag),
    ],
    dash: EndOfOptions,
    plus: true,
    login: true,
    variables: &["BASH_ENV"],
    variable_prefixes: &["BASH_FUNC_"],
    expanded: &["PS4"],
    ..USUAL
};

/// dash(1), sh(1p), ksh(1). An interactive shell reads the file in `ENV` first, and only that.
static POSIX_SHELL: Grammar = Grammar {
    names: &["sh", "dash", "ash", "ksh", "mksh"],
    short: &[("abCefhImnpqruvVxEH", Flag), ("il", Preload), ("o", NextArgument), ("c", CodeFollows), ("s", Stdin)],
    dash: EndOfOptions,
    plus: true,
    login: true,
    expanded: &["PS4"],
    ..USUAL
};

/// zsh(1), zshoptions(1): nearly every letter is an option; `-b` ends them and is left unknown.
static ZSH: Grammar = Grammar {
    names: &["zsh"],
    short: &[
        ("0123456789adefghjkmnpqrtuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ", Flag),
        ("il", Preload),
        ("o", Value),
        ("c", CodeFollows),
        ("s", Stdin),
    ],
    long: &[("--emulate", Value), ("--version", Flag), ("--help", Flag)],
    dash: EndOfOptions,
    plus: true,
    login: true,
    variables: &["ZDOTDIR"],
    expanded: &["PS4"],
    ..USUAL
};

/// perlrun(1).
static PERL: Grammar = Grammar {
    names: &["perl"],
    short: &[
        ("acfghnpstTuUvwWX", Flag),
        ("I", Value),
        ("l0", Digits),
        ("CDiV", Rest),
        ("F", Pattern),
        ("eE", Piece),
        ("mMd", Preload),
        ("Sx", Elsewhere),
    ],
    variables: &["PERL5OPT", "PERL5DB"],
    ..USUAL
};

/// ruby(1).
static RUBY: Grammar = Grammar {
    names: &["ruby"],
    short: &[
        ("acghlnpsUvwy", Flag),
        ("IE", Value),
        ("CXx", Away),
        ("0", Digits),
        ("FiKTW", Rest),
        ("e", Piece),
        ("r", Preload),
        ("S", Elsewhere),
    ],
    option_variables: &["RUBYOPT"],
    long: &[
        ("--encoding", Value),
        ("--external-encoding", Value),
        ("--internal-encoding", Value),
        ("--enable", Value),
        ("--disable", Value),
        ("--backtrace-limit", Value),
        ("--jit", Flag),
        ("--yjit", Flag),
        ("--debug", Flag),
        ("--verbose", Flag),
        ("--version", Flag),
        ("--help", Flag),
    ],
    prefixes: &[("--enable-", Flag), ("--disable-", Flag), ("--yjit-", Flag)],
    ..USUAL
};

/// node(1), `node --help`, `node --v8-options`. Options that may or may not take the next argument stay unknown.
static NODE: Grammar = Grammar {
    names: &["node", "nodejs"],
    short: &[("cvh", Flag), ("i", Interactive), ("C", Value), ("ep", Piece), ("r", Preload)],
    long: &[
        ("--eval", Piece),
        ("--print", Piece),
        ("-pe", Piece),
        ("--require", Preload),
        ("--import", Preload),
        ("--loader", Preload),
        ("--experimental-loader", Preload),
        ("--env-file", Preload),
        ("--env-file-if-exists", Preload),
        ("--snapshot-blob", Preload),
        ("--test", Elsewhere),
        ("--run", Elsewhere),
        ("--build-snapshot", Elsewhere),
        ("--prof-process", Elsewhere),
        ("--conditions", Value),
        ("--title", Value),
        ("--icu-data-dir", Value),
        ("--redirect-warnings", Value),
        ("--disable-warning", Value),
        ("--diagnostic-dir", Value),
        ("--dns-result-order", Value),
        ("--unhandled-rejections", Value),
        ("--input-type", Value),
        ("--max-http-header-size", Value),
        ("--stack-trace-limit", Value),
        ("--tls-min-v1.2", Flag),
        ("--tls-min-v1.3", Flag),
        ("--inspect", Flag),
        ("--inspect-brk", Flag),
        ("--inspect-wait", Flag),
        ("--enable-source-maps", Flag),
        ("--expose-gc", Flag),
        ("--expose_gc", Flag),
        ("--jitless", Flag),
        ("--pending-deprecation", Flag),
        ("--preserve-symlinks", Flag),
        ("--preserve-symlinks-main", Flag),
        ("--throw-deprecation", Flag),
        ("--trace-deprecation", Flag),
        ("--trace-uncaught", Flag),
        ("--trace-warnings", Flag),
        ("--track-heap-objects", Flag),
        ("--abort-on-uncaught-exception", Flag),
        ("--interactive", Interactive),
        ("--check", Flag),
        ("--watch", Flag),
        ("--use-openssl-ca", Flag),
        ("--use-bundled-ca", Flag),
        ("--use-system-ca", Flag),
        ("--zero-fill-buffers", Flag),
        ("--version", Flag),
        ("--help", Flag),
    ],
    // V8's numbers come after `=`; node passes them on.
    prefixes: &[
        ("--no-", Flag),
        ("--harmony", Flag),
        ("--max-old-space-size", Flag),
        ("--max_old_space_size", Flag),
        ("--max-semi-space-size", Flag),
        ("--stack-size", Flag),
    ],
    verbs: &[("inspect", Elsewhere), ("debug", Elsewhere)],
    variables: &["NODE_REPL_EXTERNAL_MODULE"],
    option_variables: &["NODE_OPTIONS"],
    ..USUAL
};

/// `deno help run`. Of its many options those that can only be flags, or whose values are attached.
static DENO: Grammar = Grammar {
    names: &["deno"],
    short: &[("AqEIRWNS", Flag)],
    long: &[
        ("--preload", Preload),
        ("--require", Preload),
        ("--import-map", Preload),
        ("--config", Preload),
        ("--env-file", Preload),
        ("--inspect", Flag),
        ("--inspect-brk", Flag),
        ("--inspect-wait", Flag),
        ("--quiet", Flag),
        ("--cached-only", Flag),
        ("--check", Flag),
    ],
    prefixes: &[("--allow-", Flag), ("--deny-", Flag), ("--no-", Flag), ("--unstable", Flag), ("--v8-flags", Flag)],
    verbs: &[
        ("run", ScriptFollows),
        ("serve", ScriptFollows),
        ("eval", CodeFollows),
        ("repl", Stdin),
        ("test", Elsewhere),
        ("bench", Elsewhere),
        ("task", Elsewhere),
        ("x", Elsewhere),
        ("lsp", Elsewhere),
        ("jupyter", Elsewhere),
        ("compile", Elsewhere),
        ("install", Elsewhere),
        ("add", Elsewhere),
        ("create", Elsewhere),
        ("init", Elsewhere),
        ("bundle", Elsewhere),
        ("publish", Elsewhere),
        ("check", Elsewhere),
        ("cache", Elsewhere),
        ("coverage", Elsewhere),
        ("doc", Elsewhere),
        ("fmt", Elsewhere),
        ("info", Elsewhere),
        ("lint", Elsewhere),
        ("upgrade", Elsewhere),
    ],
    urls: true,
    ..USUAL
};

/// java(1). Options are words behind one dash or two.
static JAVA: Grammar = Grammar {
    names: &["java"],
    long: &[
        ("-jar", ScriptFollows),
        ("-m", Module),
        ("--module", Module),
        ("-cp", Value),
        ("-classpath", Value),
        ("--class-path", Value),
        ("-p", Value),
        ("--module-path", Value),
        ("--upgrade-module-path", Preload),
        ("--patch-module", Preload),
        ("--add-modules", Value),
        ("--add-reads", Value),
        ("--add-exports", Value),
        ("--add-opens", Value),
        ("--limit-modules", Value),
        ("--enable-native-access", Value),
        ("--source", Elsewhere),
        ("--enable-preview", Flag),
        ("-server", Flag),
        ("-client", Flag),
        ("-ea", Flag),
        ("-da", Flag),
        ("-esa", Flag),
        ("-dsa", Flag),
        ("-enableassertions", Flag),
        ("-disableassertions", Flag),
        ("-showversion", Flag),
        ("--show-version", Flag),
        ("-verbose", Flag),
    ],
    prefixes: &[
        ("-javaagent:", Preload),
        ("-agentlib:", Preload),
        ("-agentpath:", Preload),
        ("-Xbootclasspath", Preload),
        ("-XX:Flags", Preload),
        ("-XX:SharedArchiveFile", Preload),
        ("-XX:AOT", Preload),
        ("-XX:VMOptionsFile", Preload),
        ("-Xrun", Preload),
        ("-D", Flag),
        ("-X", Flag),
        ("-ea:", Flag),
        ("-da:", Flag),
        ("-enableassertions:", Flag),
        ("-disableassertions:", Flag),
        ("-verbose:", Flag),
        ("-splash:", Flag),
    ],
    argument_files: true,
    operand: Elsewhere,
    option_variables: &["JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"],
    ..USUAL
};

/// php(1), the command line. php-fpm serves many scripts and is no interpreter here.
static PHP: Grammar = Grammar {
    names: &["php"],
    short: &[
        ("CeHhilnqsvw", Flag),
        ("a", Interactive),
        ("t", Value),
        ("d", Setting),
        ("f", Script),
        ("rRBE", Piece),
        ("F", Script),
        ("cz", Preload),
        ("S", Elsewhere),
    ],
    long: &[
        ("--file", Script),
        ("--run", Piece),
        ("--process-code", Piece),
        ("--process-begin", Piece),
        ("--process-end", Piece),
        ("--process-file", Script),
        ("--define", Setting),
        ("--docroot", Value),
        ("--php-ini", Preload),
        ("--zend-extension", Preload),
        ("--server", Elsewhere),
        ("--no-php-ini", Flag),
        ("--no-header", Flag),
        ("--version", Flag),
        ("--help", Flag),
    ],
    loaders: &[
        "auto_prepend_file",
        "auto_append_file",
        "extension",
        "zend_extension",
        "opcache.preload",
        "include_path",
        "ffi.preload",
    ],
    double_dash: Stdin,
    variables: &["PHPRC", "PHP_INI_SCAN_DIR"],
    ..USUAL
};

/// lua(1), luajit(1).
static LUA: Grammar = Grammar {
    names: &["lua", "luajit"],
    short: &[
        ("vEW", Flag),
        ("i", Interactive),
        ("e", Piece),
        ("l", Preload),
        ("j", Value),
        ("O", Rest),
        ("b", Elsewhere),
    ],
    operand_besides: true,
    variables: &["LUA_INIT", "LUA_INIT_5_2", "LUA_INIT_5_3", "LUA_INIT_5_4"],
    ..USUAL
};

/// tclsh(1): its first argument is the script unless it begins with a dash; `-encoding` is all it knows.
static TCL: Grammar = Grammar { names: &["tclsh"], long: &[("-encoding", Value)], ..USUAL };

/// awk(1p), mawk(1), gawk(1). `-W` stays unknown: mawk's `-W exec` makes a script of what follows.
static AWK: Grammar = Grammar {
    names: &["awk", "mawk", "gawk", "nawk", "original-awk"],
    short: &[("Fv", Value), ("f", Script), ("e", Piece), ("E", Script), ("il", Preload), ("bcCghkMnNOPrsStV", Flag)],
    long: &[
        ("--file", Script),
        ("--exec", Script),
        ("--source", Piece),
        ("--include", Preload),
        ("--load", Preload),
        ("--assign", Value),
        ("--field-separator", Value),
        ("--version", Flag),
        ("--posix", Flag),
        ("--sandbox", Flag),
    ],
    dash: Elsewhere,
    operand: Inline,
    // It looks there for the file of `-f`.
    variables: &["AWKPATH"],
    ..USUAL
};
