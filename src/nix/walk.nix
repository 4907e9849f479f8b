# Finds the targets below a value, and reports its progress in lines of `builtins.trace`: the one output that each version of Nix
# writes immediately, and that an expression cannot suppress. From these lines a reader knows which attribute was being evaluated
# when the evaluation fails.
#
# It is a function that is given one task after the other, and is applied to the root once, so that each task finds what the ones
# before it have evaluated. A set is only reported: its attributes are tasks of their own.
#
# An attribute is identified by its index among its siblings, and an attribute path by a list of these (`/3/0/2`): a name need not
# be UTF-8, and would not survive being printed. Each line is a marker that no repository can guess, a word, a path, and text:
#
#   begin    PATH NAME     the evaluation of this attribute begins (its name as `escaped` writes it)
#   excluded PATH N,N NAME the attribute is excluded, by the exclusions with these numbers
#   known    PATH NAME     the attribute is a target that is known already, and is not evaluated
#   unmarked PATH          a set that is not walked, because it is not marked
#   beside   PATH NAMES    not walked in a flake: its outputs with these names (at the root), else these systems
#   holds    PATH          an unmarked set in which there are derivations
#   empty    PATH          an unmarked set in which no derivations were found
#   callable PATH          its step must not call it: a derivation that can be called, or a set whose mark may be wrong
#   set      PATH COUNT    a set or a list of this many attributes
#   meta     PATH          a derivation that evaluates; the evaluation of its metadata begins
#   target   PATH JSON     a derivation (`named`: its drvPath is a plain string, so this evaluation need not have written it; `steps`:
#                          the names of the steps that follow it, of which the next lines are)
#   follow   PATH N        the evaluation of the step with this number begins
#   step     PATH N JSON   a step that follows a derivation (`run`: the derivation that it runs; `text`: the error)
#   lost     PATH N        the step throws, and the task catches that
#   throws   PATH          it throws, and the task catches that
#   refused  PATH TEXT     its metadata cannot be used
#   error    PATH TEXT     it does not evaluate, for a reason that Nix gives only where it finds it in a set
#   deep     PATH          nested too deeply: the sets are cyclic, or infinite
#   other    PATH TYPE     the root is neither a set, a list nor a derivation
#   end      VERSION       the task is done, by this version of Nix
{
  # The first word of each line.
  marker,
  # The attribute paths to exclude, relative to the root; `*` matches one name.
  exclude,
  # The targets that are known already: a set for each set with some, in which `true` stands for a target.
  known,
  # Whether to walk each set, marked or not.
  all,
  # Null; or, where the root is the outputs of a flake, the systems to record.
  systems,
  # Whether to read `meta.buildkite` and `meta.eval-once`.
  buildkite,
}:
let
  # Cyclic sets would be walked without end.
  deepest = 32;

  list = builtins.concatStringsSep ",";

  # The outputs of a flake that have a set for each system.
  bySystem = [
    "checks"
    "packages"
  ];

  # Other outputs that hold derivations. (`legacyPackages` and `apps` are not meant for CI.)
  otherOutputs = [
    "darwinConfigurations"
    "defaultPackage"
    "devShell"
    "devShells"
    "formatter"
    "homeConfigurations"
    "nixosConfigurations"
  ];

  say =
    word: at: text:
    builtins.trace "${marker} ${word} ${at} ${text}" null;

  # What Nix removes from a trace, or a reader takes for the end of a line.
  controls = [
    "\\"
    "\n"
    "\t"
    "\r"
  ]
  ++ builtins.fromJSON ''["\u0007", "\u001b"]'';
  controlNames = [
    "\\\\"
    "\\n"
    "\\t"
    "\\r"
    "\\a"
    "\\e"
  ];

  # A name as a trace can carry it. Of one that is longer than an agent can pass to a job (128 KiB), as much is said as is refused for that.
  escaped = name: builtins.replaceStrings controls controlNames (builtins.substring 0 131073 name);

  isDerivation = value: builtins.isAttrs value && value.type or null == "derivation";

  # A function (or functor) `{ x }: …` without a value for x is neither a target nor an error: libraries are full of them.
  called =
    call: value:
    if !call.calls then
      value
    else if builtins.isAttrs value && value ? __functor then
      called call (value.__functor value)
    else if
      builtins.isFunction value
      && builtins.any (name: !(builtins.functionArgs value).${name} && !(call.given ? ${name})) (
        builtins.attrNames (builtins.functionArgs value)
      )
    then
      value
    else
      call.call value;

  # ---- metadata: read as plain data, up to a limit

  refused = text: { inherit text; };

  # Gives { data; budget; }: the data without string context, and how many bytes may still follow; or { text; }, the error.
  clean =
    where: depth: budget: value:
    let
      type = builtins.typeOf value;
      scalar =
        size: data:
        if size > budget then
          refused "meta is larger than 64 KiB"
        else
          {
            inherit data;
            budget = budget - size;
          };
      each =
        name: item: soFar:
        if soFar ? text then
          soFar
        else
          let
            one = clean "${where}.${name}" (depth + 1) soFar.budget item;
          in
          if one ? text then
            one
          else
            {
              inherit (one) budget;
              data = soFar.data ++ [
                {
                  inherit name;
                  value = one.data;
                }
              ];
            };
      nothing = {
        data = [ ];
        budget = budget - 8;
      };
    in
    if budget < 8 then
      refused "meta is larger than 64 KiB"
    else if depth > 16 then
      refused "${where} is nested deeper than 16 levels"
    else if type == "null" || type == "bool" || type == "int" then
      scalar 8 value
    else if type == "float" then
      if value - value == 0.0 then scalar 24 value else refused "${where} is not a finite number"
    else if type == "string" then
      scalar (8 + builtins.stringLength value) (builtins.unsafeDiscardStringContext value)
    else if type == "list" then
      let
        items = builtins.foldl' (
          soFar: index: each (toString index) (builtins.elemAt value index) soFar
        ) nothing (builtins.genList (index: index) (builtins.length value));
      in
      if items ? text then items else items // { data = map (item: item.value) items.data; }
    else if type == "set" then
      if value.type or null == "derivation" || value ? outPath || value ? __toString then
        refused "${where} is a derivation, or converts to a string; expected plain data"
      else
        let
          # A name counts like a string.
          items = builtins.foldl' (
            soFar: name:
            each name value.${name} (
              if soFar ? text then soFar else soFar // { budget = soFar.budget - builtins.stringLength name; }
            )
          ) nothing (builtins.attrNames value);
        in
        if items ? text then items else items // { data = builtins.listToAttrs items.data; }
    else
      refused "${where} is ${article type}; expected plain data";

  # Evaluates these attributes of `meta` and no others, which may throw.
  metadata =
    at: value:
    let
      # `meta` itself may throw, and a step builds the derivation all the same.
      meta = builtins.seq (say "meta" at "") value.meta;
      wanted = builtins.filter (name: meta ? ${name}) (
        (
          if buildkite then
            [
              "buildkite"
              "eval-once"
            ]
          else
            [ ]
        )
        ++ [
          "description"
          "maxSilent"
          "timeout"
        ]
      );
      one =
        soFar: name:
        if soFar ? text then
          soFar
        else
          let
            # What follows is evaluated when the target is known: see `following`.
            plain =
              if name == "eval-once" && builtins.attrNames soFar.steps != [ ] then
                builtins.removeAttrs meta.${name} [ "steps" ]
              else
                meta.${name};
            data = clean "meta.${name}" 1 soFar.budget plain;
          in
          if data ? text then
            data
          else
            {
              inherit (data) budget;
              inherit (soFar) steps;
              data = soFar.data // {
                ${name} = data.data;
              };
            };
    in
    if !(value ? meta) || !builtins.isAttrs meta then
      {
        data = { };
        steps = { };
      }
    else
      builtins.foldl' one {
        data = { };
        steps = followers meta;
        budget = 65536;
      } wanted;

  # ---- steps that follow a target

  # The steps that follow a target with this `meta`, as far as they are a set; anything else there is plain data, and wrong.
  followers =
    meta:
    let
      ours = meta.eval-once or null;
      steps = ours.steps or null;
    in
    if buildkite && builtins.isAttrs ours && builtins.isAttrs steps && !isDerivation steps then steps else { };

  # The derivation that a step runs.
  runOf =
    where: run:
    if !isDerivation run then
      refused "${where} is ${article (builtins.typeOf run)}; expected a derivation"
    else if !(builtins.hasContext run.drvPath) then
      refused "the drvPath of ${where} is a plain string, so that nothing has written it"
    else
      let
        program = clean "${where}.meta.mainProgram" 1 4096 (run.meta.mainProgram or null);
      in
      if program ? text then
        program
      else
        {
          data = {
            drv = builtins.unsafeDiscardStringContext run.drvPath;
            program = program.data;
          };
        };

  # A step as it is reported. Everything that may throw is evaluated here.
  followerOf =
    where: value:
    let
      runs = builtins.isAttrs value && value ? run && !isDerivation value;
      keys = clean where 2 65536 (if runs then builtins.removeAttrs value [ "run" ] else value);
      run = if runs then runOf "${where}.run" value.run else { data = null; };
      # A command loses its context as all text does, and nothing would bring what it refers to to the step's host.
      command = if builtins.isAttrs value then value.command or "" else "";
      refers = text: builtins.isString text && builtins.hasContext text;
    in
    if keys ? text then
      keys
    else if builtins.any refers (if builtins.isList command then command else [ command ]) then
      refused "${where}.command refers to a store path, which nothing brings to the host of the step: use run, or EVAL_ONCE_OUT for the output of the target"
    else if run ? text then
      run
    else
      {
        keys = keys.data;
        run = run.data;
      };

  # Reports the steps that follow a target, after the target itself: it is built also where one of them does not evaluate. Those that
  # throw come last, because the message of the first is the last thing that this evaluation says.
  following =
    task: here: steps:
    let
      names = builtins.attrNames steps;
      begin = index: say "follow" here.at (toString index);
      tell =
        index:
        let
          name = builtins.elemAt names index;
          json = builtins.toJSON (followerOf "meta.eval-once.steps.${name}" steps.${name});
        in
        builtins.seq json (say "step" here.at "${toString index} ${json}");
      throwing = builtins.filter (
        index: builtins.seq (begin index) (!(builtins.tryEval (tell index)).success)
      ) (builtins.genList (index: index) (builtins.length names));
      last =
        index:
        if task.catch then
          say "lost" here.at (toString index)
        else
          builtins.seq (begin index) (tell index);
    in
    builtins.foldl' (_: last) null throwing;

  # ---- walking

  # The value of an attribute, called where Nix calls it. `nix-instantiate FILE` does not call a derivation that has a functor, and
  # `nix build FLAKE#a` calls nothing; only `-A` calls a derivation with a functor.
  valueOf =
    call: here: value:
    if isDerivation value then
      value
    else if here.at == "" then
      call.call value
    else
      called call value;

  # A value of this type, in words.
  article =
    type:
    {
      int = "an integer";
      lambda = "a function";
      null = "null";
    }
    .${type} or "a ${type}";

  # `nix-instantiate` fails at a derivation without these attributes, though building it needs neither; `nix build` of a flake does
  # not.
  hasNames =
    value:
    let
      has =
        name:
        if !(value ? ${name}) then
          throw "the derivation has no ${name}"
        else if !builtins.isString value.${name} then
          throw "its ${name} is ${article (builtins.typeOf value.${name})}; expected a string"
        else if value.${name} == "" || builtins.hasContext value.${name} then
          throw "its ${name} is empty, or refers to a store path"
        else
          true;
    in
    has "name" && has "outputName";

  hasMark = value: builtins.isAttrs value && value ? recurseForDerivations;

  # Gives { marked; }: true, false, or null without a mark; or { text; }, the error, where Nix fails as well.
  markOf =
    value:
    if !hasMark value then
      { marked = null; }
    else
      let
        type = builtins.typeOf value.recurseForDerivations;
      in
      if type == "bool" then
        { marked = value.recurseForDerivations; }
      else
        { text = "recurseForDerivations is ${article type}; expected true or false"; };

  # What an attribute is. Everything that may throw is evaluated here.
  classify =
    call: here: value':
    let
      value = valueOf call here value';
      # Nix reads the mark of a functor before it calls it; a function has one only afterwards.
      before = markOf value';
      mark = if before ? text || before.marked != null then before else markOf value;
      canBeCalled = call.calls && isDerivation value' && value' ? __functor;
      # Reported first: its step has to know it also where the drvPath throws.
      drv = builtins.seq (if canBeCalled then say "callable" here.at "" else null) (
        builtins.seq (call.calls -> hasNames value) (
          builtins.unsafeDiscardStringContext value.drvPath
        )
      );
      # After the drvPath: a step builds the derivation without evaluating its metadata.
      meta = builtins.seq drv (metadata here.at value);
      json = builtins.toJSON (
        {
          inherit drv;
          meta = meta.data;
        }
        // (if builtins.hasContext value.drvPath then { } else { named = true; })
        // (if builtins.attrNames meta.steps == [ ] then { } else { steps = builtins.attrNames meta.steps; })
      );
      set = names: get: builtins.seq (builtins.length names) { inherit names get; };
      members = set (builtins.attrNames value) (name: value.${name});
    in
    if builtins.isAttrs value then
      if isDerivation value then
        if here.systems != null && !builtins.elem (value.system or null) here.systems then
          { other = "derivation"; }
        else if builtins.dirOf drv != builtins.storeDir then
          { text = "its drvPath is not in ${builtins.storeDir}: ${drv}"; }
        else if meta ? text then
          { inherit (meta) text; }
        else
          builtins.seq json {
            inherit json;
            inherit (meta) steps;
          }
      else if here.walk > 0 || all then
        members
      else
        # Reported before the mark is evaluated, which may throw: by itself the set builds all the same, because Nix reads the mark
        # only of a set that it finds in another one.
        builtins.seq (if call.calls && (hasMark value' || hasMark value) then say "callable" here.at "" else null) (
          if mark.marked or null == true then
            members
          else if mark ? text then
            { error = mark.text; }
          else
            { other = if mark.marked == null then "set" else "marked"; }
        )
    else if builtins.isList value then
      set (map toString (builtins.genList (index: index) (builtins.length value))) (
        index: builtins.elemAt value (builtins.fromJSON index)
      )
    else
      { other = builtins.typeOf value; };

  # The position of the attribute `index` of `set`.
  step =
    here: set: index:
    let
      name = builtins.elemAt set.names index;
      jobs = systems != null && here.at == "" && name == "hydraJobs";
    in
    {
      inherit name;
      path = here.path ++ [ name ];
      at = "${here.at}/${toString index}";
      depth = here.depth + 1;
      # How many levels of sets are walked without a mark.
      walk = if jobs then deepest else here.walk - 1;
      # The systems to record below it; below the name of a system it was chosen by that.
      systems = if jobs then systems else here.systems;
      # The exclusions that may match below it.
      exclude = builtins.concatMap (
        one:
        (if one.below ? ${name} then [ one.below.${name} ] else [ ])
        ++ (if name != "*" && one.below ? "*" then [ one.below."*" ] else [ ])
      ) here.exclude;
      # A selection from what is no set finds nothing.
      known = here.known.${name} or { };
      # The systems of a flake's packages and checks that are not recorded. Evaluated only after the packages and checks
      # themselves, which may throw.
      beside =
        if here ? outputs && here.at == "" && builtins.elem name bySystem then
          builtins.attrNames (builtins.removeAttrs here.outputs.${name} systems)
        else
          [ ];
    };

  # The exclusions by the first names of their paths, so that an attribute is not compared with each of them; and the numbers of those
  # that end here.
  exclusions =
    paths:
    let
      longer = builtins.filter (one: one.path != [ ]) paths;
      without = map (one: one // { path = builtins.tail one.path; });
    in
    {
      numbers = map (one: one.number) (builtins.filter (one: one.path == [ ]) paths);
      below = builtins.mapAttrs (_: ones: exclusions (without ones)) (
        builtins.groupBy (one: builtins.head one.path) longer
      );
    };

  root = {
    path = [ ];
    at = "";
    depth = 0;
    walk = if systems != null then 3 else 1;
    systems = null;
    inherit known;
    exclude =
      if exclude == [ ] then
        [ ]
      else
        [
          (exclusions (
            builtins.genList (number: {
              inherit number;
              path = builtins.elemAt exclude number;
            }) (builtins.length exclude)
          ))
        ];
    beside = [ ];
  };

  # Whether an attribute is excluded is said before anything of it is evaluated.
  attribute =
    task: call: here: value:
    let
      excludedBy = builtins.concatMap (one: one.numbers) here.exclude;
    in
    if excludedBy != [ ] then
      say "excluded" here.at "${list (map toString excludedBy)} ${escaped here.name}"
    else if here.known == true then
      say "known" here.at (escaped here.name)
    else
      builtins.seq (say "begin" here.at (escaped here.name)) (visit task call here value);

  visit =
    task: call: here: value:
    let
      tried =
        if task.catch then
          builtins.tryEval (classify call here value)
        else
          {
            success = true;
            value = classify call here value;
          };
      found = tried.value;
    in
    if !tried.success then
      say "throws" here.at ""
    else if found ? json then
      builtins.seq (say "target" here.at found.json) (following task here found.steps)
    else if found ? text then
      say "refused" here.at (builtins.replaceStrings [ "\n" ] [ " " ] found.text)
    else if found ? error then
      say "error" here.at found.error
    else if found ? names then
      if here.depth >= deepest then
        builtins.seq (say "deep" here.at "") (throw "nested too deeply")
      else
        builtins.seq (say "set" here.at (toString (builtins.length found.names))) (
          if here.beside == [ ] then null else say "beside" here.at (list here.beside)
        )
    else if here.at == "" then
      say "other" "" (article found.other)
    else if found.other == "set" then
      say "unmarked" here.at ""
    else
      null;

  # ---- unmarked sets

  # Whether there are derivations in a set, or in the sets in it. Only its first attributes are evaluated: the answer is worth no
  # more. An attribute that throws is not a derivation.
  holds =
    counts: set:
    let
      most = builtins.head counts;
      count = builtins.length (builtins.attrNames set);
      one =
        index:
        let
          value = set.${builtins.elemAt (builtins.attrNames set) index};
          tried = builtins.tryEval (
            isDerivation value
            || builtins.length counts > 1 && builtins.isAttrs value && holds (builtins.tail counts) value
          );
        in
        tried.success && tried.value;
    in
    builtins.any one (builtins.genList (index: index) (if count < most then count else most));

  searchIn =
    call: here: value':
    let
      tried = builtins.tryEval (
        let
          value = valueOf call here value';
        in
        builtins.isAttrs value
        && holds [
          32
          8
        ] value
      );
    in
    say (if tried.success && tried.value then "holds" else "empty") here.at "";

  # ---- sets, by their place

  # A set that tasks descend to: what it is, and the sets in it by their index, each of them evaluated at most once.
  place = call: here: value: rec {
    inherit here;
    set = classify call here value;
    below = builtins.genList (
      index:
      let
        next = step here set index;
      in
      place call next (set.get next.name)
    ) (builtins.length set.names);
  };

  # Walks the attributes of a span: [ [ 3 0 ] 2 7 9 ] are the attributes 2 to 6 of the set /3/0, which has 9.
  span =
    task: call: root: span:
    let
      inherit (builtins.foldl' (place: builtins.elemAt place.below) root (builtins.elemAt span 0)) here set;
      from = builtins.elemAt span 1;
      to = builtins.elemAt span 2;
      count = builtins.elemAt span 3;
      found = builtins.length set.names;
      which = if here.path == [ ] then "the root" else builtins.concatStringsSep "." here.path;
      one =
        index:
        let
          next = step here set index;
          value = set.get next.name;
        in
        if task.search then searchIn call next value else attribute task call next value;
    in
    if found != count then
      throw "${which} had ${toString count} attributes when it was first evaluated, and has ${toString found} now"
    else
      builtins.foldl' (_: one) null (builtins.genList (index: index + from) (to - from));

  # The outputs of a flake that are recorded where `attr` does not name any.
  ofFlake =
    outputs:
    let
      ours = builtins.listToAttrs (
        map (name: {
          inherit name;
          value = null;
        }) systems
      );
      of =
        name:
        if outputs ? ${name} then { ${name} = builtins.intersectAttrs ours outputs.${name}; } else { };
    in
    of "checks" // of "packages" // (if outputs ? hydraJobs then { inherit (outputs) hydraJobs; } else { });
in
call: value':
let
  value = if systems == null then value' else ofFlake value';
  here = if systems == null then root else root // { outputs = value'; };
  others = builtins.filter (name: systems != null && value' ? ${name}) otherOutputs;
  top = place call here value;
in
# A task:
{
  # What to walk: null for the root, or spans of attributes; without any, the root is only evaluated.
  spans,
  # Whether to catch what throws.
  catch ? false,
  # Whether the spans are unmarked sets, to be searched for derivations instead of walked.
  search ? false,
  # Whether the value is a text that no pipe holds (a pipe has 16 pages, which are of 64 KiB at most): who prints it waits for a reader.
  hold ? false,
}:
let
  task = {
    inherit catch search;
  };
in
builtins.seq (
  if spans == null then
    builtins.seq (if others == [ ] then null else say "beside" "" (list others)) (
      visit task call here value
    )
  else if spans == [ ] then
    builtins.seq top.set null
  else
    builtins.foldl' (_: span task call top) null spans
) (
  builtins.seq (say "end" "" builtins.nixVersion) (
    if hold then builtins.foldl' (text: _: text + text) "." (builtins.genList (n: n) 21) else null
  )
)
