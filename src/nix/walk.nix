# Finds the targets below a value, and says what it does in lines of `builtins.trace`: the one output that every Nix writes at
# once, and that an expression cannot take back. Whoever reads them knows at each death which attribute was under way.
#
# An attribute is known by its number among its siblings, and a path of attributes by their numbers (`/3/0/2`): a name need not
# be UTF-8, and would not survive being printed. Each line is a marker that no repository can guess, a word, a path, and text:
#
#   begin  PATH NAME     this attribute is looked at now (its name as `escaped` writes it)
#   out    PATH N,N NAME it is one of those that are left out, by these of the exclusions
#   pass   PATH          it is a set that is not looked into
#   beside PATH NAMES    these stand beside what is looked at in a flake: of its outputs (the root), or of systems
#   holds  PATH          it was not looked into, and derivations are in it
#   none   PATH          it was not looked into, and no derivations were found in it
#   call   PATH          its step must not call it: it is a derivation that can be called, or a set whose mark may be wrong
#   set    PATH COUNT    it is a set or a list, and its attributes come next
#   meta   PATH          it is a derivation that evaluates, and its metadata is looked at
#   target PATH JSON     it is a derivation (`named`: its drvPath is a mere string, and nothing says that it was written)
#   broken PATH          it throws; what it says is known only to who does not catch it
#   refuse PATH TEXT     its metadata is no data
#   error  PATH TEXT     it does not evaluate, and Nix says so only where it meets it in a set
#   deep   PATH          it is nested too deeply: sets go round in a circle, or never end
#   no     PATH TYPE     the root is none of these
#   end    VERSION       that was all, of this version of Nix
{
  # Begins each line.
  marker,
  # What to look at: null for the root and all below it, or spans of attributes: { at = [ 3 0 ]; from = 2; to = 7; count = 9; }
  # are those from 2 on and before 7 below the attribute /3/0, which has 9.
  start,
  # Attribute paths that are left out, relative to the root, `*` for one name.
  exclude,
  # Whether every set is walked.
  all,
  # Null; or the systems that count, and then the root is a flake's outputs.
  systems,
  # Whether `meta.buildkite` and `meta.eval-once` are looked at.
  buildkite,
  # Whether what throws is caught: then the next attribute costs no new process.
  catch,
  # Whether the spans are sets that a walk has passed, and it is only asked whether they hold derivations.
  look,
}:
let
  # A cycle of sets would never end.
  deepest = 32;

  list = builtins.concatStringsSep ",";

  # A flake's outputs that are sets by system.
  bySystem = [
    "checks"
    "packages"
  ];

  # Its outputs that hold derivations all the same; those of `legacyPackages` and `apps` are no affair of CI.
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

  # Nix takes tabs, carriage returns, bells and escape sequences out of what it traces: another name would be left.
  escaped =
    builtins.replaceStrings
      (
        [
          "\\"
          "\n"
          "\t"
          "\r"
        ]
        ++ builtins.fromJSON ''["\u0007", "\u001b"]''
      )
      [
        "\\\\"
        "\\n"
        "\\t"
        "\\r"
        "\\a"
        "\\e"
      ];

  isDerivation = value: builtins.isAttrs value && value.type or null == "derivation";

  # `{ x }: …` without a value for x is no target, and no mistake either: a library is full of them. Nor is a functor.
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

  # ---- metadata: what is left of it is data, and not too much of it

  refused = text: { inherit text; };

  # Gives { data; left; }: the data without string context, and how many bytes may still come; or { text; }, why not.
  clean =
    where: depth: left: value:
    let
      type = builtins.typeOf value;
      scalar =
        size: data:
        if size > left then
          refused "meta holds more than 64 KiB"
        else
          {
            inherit data;
            left = left - size;
          };
      each =
        name: item: soFar:
        if soFar ? text then
          soFar
        else
          let
            one = clean "${where}.${name}" (depth + 1) soFar.left item;
          in
          if one ? text then
            one
          else
            {
              inherit (one) left;
              data = soFar.data ++ [
                {
                  inherit name;
                  value = one.data;
                }
              ];
            };
      nothing = {
        data = [ ];
        left = left - 8;
      };
    in
    if left < 8 then
      refused "meta holds more than 64 KiB"
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
        refused "${where} is a derivation, or made to be a string: no data"
      else
        let
          # A name costs as much as a string.
          items = builtins.foldl' (
            soFar: name:
            each name value.${name} (
              if soFar ? text then soFar else soFar // { left = soFar.left - builtins.stringLength name; }
            )
          ) nothing (builtins.attrNames value);
        in
        if items ? text then items else items // { data = builtins.listToAttrs items.data; }
    else
      refused "${where} is a ${type}: no data";

  # Touches these attributes of `meta` and no other.
  metadata =
    at: value:
    let
      # It may throw as well as what is in it, and a step builds the derivation all the same.
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
            data = clean "meta.${name}" 1 soFar.left meta.${name};
          in
          if data ? text then
            data
          else
            {
              inherit (data) left;
              data = soFar.data // {
                ${name} = data.data;
              };
            };
    in
    if !(value ? meta) || !builtins.isAttrs meta then
      { data = { }; }
    else
      builtins.foldl' one {
        data = { };
        left = 65536;
      } wanted;

  # ---- walking

  # The value that stands for an attribute. `nix-instantiate FILE` takes a derivation for one before it asks whether it can
  # be called, and `nix build FLAKE#a` calls nothing; only `-A` calls a derivation with a functor.
  valueOf =
    call: here: value:
    if isDerivation value then
      value
    else if here.at == "" then
      call.call value
    else
      called call value;

  # What a value of this type is called.
  article =
    type:
    {
      int = "an integer";
      lambda = "a function";
      null = "null";
    }
    .${type} or "a ${type}";

  # `nix-instantiate` fails at a derivation that does not say these, though nothing needs them to build it; `nix build` of a
  # flake does not.
  saysItself =
    value:
    let
      says =
        name:
        if !(value ? ${name}) then
          throw "the derivation has no ${name}"
        else if !builtins.isString value.${name} then
          throw "its ${name} is ${article (builtins.typeOf value.${name})}, and must be a string"
        else if value.${name} == "" || builtins.hasContext value.${name} then
          throw "its ${name} is empty, or refers to a store path"
        else
          true;
    in
    says "name" && says "outputName";

  hasMark = value: builtins.isAttrs value && value ? recurseForDerivations;

  # Gives { marked; }: true, false, or null where nothing is said; or { text; }, what is wrong: Nix fails there.
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
        { text = "recurseForDerivations is ${article type}, and must be true or false"; };

  # What an attribute is. Everything that may throw is forced here.
  classify =
    call: here: value':
    let
      value = valueOf call here value';
      # Nix looks at the mark before it calls a functor; a function has one only afterwards.
      before = markOf value';
      mark = if before ? text || before.marked != null then before else markOf value;
      canBeCalled = call.calls && isDerivation value' && value' ? __functor;
      # That it can be called is said first: its step has to know that also where its drvPath throws.
      drv = builtins.seq (if canBeCalled then say "call" here.at "" else null) (
        builtins.seq (call.calls -> saysItself value) (
          builtins.unsafeDiscardStringContext value.drvPath
        )
      );
      # What a derivation says about itself comes after what it is: a step builds it without ever looking at that.
      meta = builtins.seq drv (metadata here.at value);
      json = builtins.toJSON (
        {
          inherit drv;
          meta = meta.data;
        }
        // (if builtins.hasContext value.drvPath then { } else { named = true; })
      );
      set = names: get: builtins.seq (builtins.length names) { inherit names get; };
      members = set (builtins.attrNames value) (name: value.${name});
    in
    if builtins.isAttrs value then
      if isDerivation value then
        if here.systems != null && !builtins.elem (value.system or null) here.systems then
          { no = "derivation"; }
        else if builtins.dirOf drv != builtins.storeDir then
          { text = "its drvPath does not lie in ${builtins.storeDir}: ${drv}"; }
        else if meta ? text then
          { inherit (meta) text; }
        else
          builtins.seq json { inherit json; }
      else if here.walk > 0 || all then
        members
      else
        # Before the mark is forced, which may throw: the set alone would be built all the same, for Nix asks no set for its mark
        # that it is given, only one that it finds in another.
        builtins.seq (if call.calls && (hasMark value' || hasMark value) then say "call" here.at "" else null) (
          if mark.marked or null == true then
            members
          else if mark ? text then
            { error = mark.text; }
          else
            { no = if mark.marked == null then "set" else "marked"; }
        )
    else if builtins.isList value then
      set (map toString (builtins.genList (index: index) (builtins.length value))) (
        index: builtins.elemAt value (builtins.fromJSON index)
      )
    else
      { no = builtins.typeOf value; };

  # Where the attribute `index` of `set` is.
  step =
    here: set: index:
    let
      name = builtins.elemAt set.names index;
      jobs = systems != null && here.at == "" && name == "hydraJobs";
    in
    {
      inherit name;
      at = "${here.at}/${toString index}";
      depth = here.depth + 1;
      # How many levels of sets are walked whatever they say.
      walk = if jobs then deepest else here.walk - 1;
      # Which systems count below it; what stands below a system's name has been chosen by it.
      systems = if jobs then systems else here.systems;
      # What is left of the paths that are left out.
      exclude = map (one: one // { path = builtins.tail one.path; }) (
        builtins.filter (
          one: builtins.head one.path == "*" || builtins.head one.path == name
        ) here.exclude
      );
      # Of a flake's packages and checks, those of systems that are not looked at. Asked for only once these are known
      # to evaluate.
      beside =
        if here ? outputs && here.at == "" && builtins.elem name bySystem then
          builtins.attrNames (builtins.removeAttrs here.outputs.${name} systems)
        else
          [ ];
    };

  root = {
    at = "";
    depth = 0;
    walk = if systems != null then 3 else 1;
    systems = null;
    exclude = builtins.filter (one: one.path != [ ]) (
      builtins.genList (number: {
        inherit number;
        path = builtins.elemAt exclude number;
      }) (builtins.length exclude)
    );
    beside = [ ];
  };

  attributes =
    call: here: set: from: to:
    builtins.foldl' (_: index: attribute call (step here set index) (set.get (builtins.elemAt set.names index))) null (
      builtins.genList (index: index + from) (if to > from then to - from else 0)
    );

  attribute =
    call: here: value:
    let
      out = builtins.filter (one: one.path == [ ]) here.exclude;
    in
    if out != [ ] then
      say "out" here.at "${list (map (one: toString one.number) out)} ${escaped here.name}"
    else
      builtins.seq (say "begin" here.at (escaped here.name)) (visit call here value);

  visit =
    call: here: value:
    let
      tried =
        if catch && here.at != "" then
          builtins.tryEval (classify call here value)
        else
          {
            success = true;
            value = classify call here value;
          };
      found = tried.value;
    in
    if !tried.success then
      say "broken" here.at ""
    else if found ? json then
      say "target" here.at found.json
    else if found ? text then
      say "refuse" here.at (builtins.replaceStrings [ "\n" ] [ " " ] found.text)
    else if found ? error then
      say "error" here.at found.error
    else if found ? names then
      if here.depth >= deepest then
        say "deep" here.at ""
      else
        let
          count = builtins.length found.names;
        in
        builtins.seq (say "set" here.at (toString count)) (
          builtins.seq (if here.beside == [ ] then null else say "beside" here.at (list here.beside)) (
            attributes call here found 0 count
          )
        )
    else if here.at == "" then
      say "no" "" found.no
    else if found.no == "set" then
      say "pass" here.at ""
    else
      null;

  # ---- looking at what was passed

  # Whether there are derivations in a set, or in the sets in it. Only the first attributes are looked at: it is not worth
  # more to know that. What throws in there is none.
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

  lookAt =
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
    say (if tried.success && tried.value then "holds" else "none") here.at "";

  # Goes down to where a span begins, without a word.
  span =
    call: value:
    { at, from, to, count }:
    let
      down =
        { here, set }:
        index:
        let
          below = step here set index;
        in
        {
          here = below;
          set = classify call below (set.get below.name);
        };
      parent = builtins.foldl' down {
        here = root;
        set = classify call root value;
      } at;
      found = builtins.length parent.set.names;
    in
    if found != count then
      throw "evaluated twice, the set at ${parent.here.at} has ${toString count} attributes first, and ${toString found} then"
    else if look then
      let
        index = from;
        here = step parent.here parent.set index;
      in
      lookAt call here (parent.set.get here.name)
    else
      attributes call parent.here parent.set from to;

  # A flake's outputs that are targets, where nobody has named any.
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
  others = builtins.filter (name: systems != null && value' ? ${name}) otherOutputs;
in
builtins.seq (
  if start == null then
    builtins.seq (if others == [ ] then null else say "beside" "" (list others)) (
      visit call (if systems == null then root else root // { outputs = value'; }) value
    )
  else
    builtins.foldl' (_: one: span call value one) null start
) (say "end" "" builtins.nixVersion)
