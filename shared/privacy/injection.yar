/*
  Rules that match instructions to a language model in text that should only be data. The scanned text is in lower case
  and NFKC, without invisible characters; text with look-alike letters is scanned again with Latin letters. A rule
  requires both a verb and its object, so that "ignore case" and "the instructions above" do not match.
*/

rule override_en {
  strings:
    $a = /\b(ignore|disregard|forget|bypass|override|overrule|neglect|discard|skip|abandon|set aside|do not (follow|obey)|don'?t (follow|obey)|stop (following|obeying)|pay no (attention|heed) to|no longer (follow|obey))\s+([a-z']+\s+){0,3}(all\s+)?(of\s+)?(the\s+|your\s+|my\s+|any\s+|these\s+|those\s+|its\s+)?(previous|prior|above|earlier|preceding|foregoing|initial|original|existing|current|former|past|system|developer|safety|other)\s+([a-z']+\s+){0,3}(instructions?|prompts?|rules?|directions?|directives?|guidelines?|commands?|orders|constraints|restrictions|policies|programming|context|system messages?|guardrails|training)\b/
    $b = /\b(ignore|disregard|forget|bypass|override|overrule|discard|abandon)\s+(all\s+|any\s+)?(of\s+)?(your|the|these|those|every|all|any)\s+(of\s+your\s+)?(safety\s+|system\s+|content\s+|other\s+)?(instructions?|guidelines|programming|guardrails|directives|restrictions|system prompts?|safety (rules|policies|filters?))\b(\s+(above|before|you (were|have been|got|had been) (given|told)|given|so far|that came before|from before|and\b)|\s*[.!,;:"']|\s*$)/
    $c = /\b(ignore|disregard|forget|discard)\s+(everything|anything|all)\s+((that\s+)?(was|has been|is|were|i|you('ve| have)?)\s+)?([a-z']+\s+){0,3}(above|before this|previously|prior to this|up to (now|this point)|so far|told|learned|been told|said before|written above)\b/
    $d = /\b(instructions|rules|guidelines|system prompt|directives)\s+(above|before|so far|you were given)?\s*(no longer apply|do not apply (any ?more|to you)|are (now )?(void|cancelled|canceled|revoked|superseded|obsolete|null and void)|have been (replaced|revoked|superseded|overridden))\b/
    $e = /\b(new|updated|real|actual|revised|important)\s+(system\s+)?(instructions?|directives?|orders|task)\s*(for (you|the (ai|assistant|model|llm|chatbot)))?\s*(:|=|from (the )?(developer|system|admin))\s*([a-z']+\s+){0,4}(ignore|reveal|output|print|send|respond|reply|say|instead|forget|you (are|must|will|should)|do not|only|always|never)\b/
    $f = /\b(ignore|disregard|forget|dismiss|discard)\s+(what|whatever|anything|everything)\s+(that\s+)?(the\s+|your\s+|any\s+)?(developers?|system|creators?|user|operator|admin|you)\s+(has |have |had |was |were |been )*(said|told|instructed|wrote|asked|programmed|say|says|tells?)\b/
    $g = /\b(everything|anything|all( of the)?( text| instructions)?)\s+((that is |was |that was )?(written|said|stated|given)\s+)?(above|before this|before here|prior to this|up to (here|this point))\s*([a-z]+\s+){0,3}(is|are|was|were)\s+(now\s+)?(void|invalid|cancelled|canceled|obsolete|a test|fake|wrong|superseded|to be ignored)/
  condition: any of them
}

rule override_de {
  strings:
    $a = /\b(ignorier(e|en sie|t)?|vergiss|vergessen sie|missachte(n sie)?|beachte(n sie)? nicht|verwirf|verwerfen sie|überschreibe?(n sie)?|umgehe?(n sie)?)\s+(bitte\s+|jetzt\s+|nun\s+|sofort\s+)?(alle[ns]?\s+|sämtliche[nr]?\s+)?(die(se)?\s+|deine[nr]?\s+|ihre[nr]?\s+|eure\s+|meine[nr]?\s+)?((bisherig|vorherig|vorig|vorangegangen|vorangehend|obig|früher|ursprünglich|vorstehend|bestehend|anderen|oben genannt)(e[nrs]?)?\s+)?([^\s.,;:!?]+\s+){0,1}(anweisung(en)?|instruktion(en)?|regeln|vorgaben|befehle|richtlinien|anleitungen|system-?prompts?|systemanweisung(en)?|prompts?|beschränkungen|sicherheitsregeln)/
    $c = /\bneue (anweisung|instruktion|aufgabe)(en)?\s*:\s*(ignoriere?|vergiss|antworte|gib|verrate|du (bist|sollst|musst))/
    $b = /\b(vergiss|ignoriere?|vergessen sie|ignorieren sie)\s+alles,?\s+(was\s+)?([^\s.,;:!?]+\s+){0,4}(gesagt|oben|bisher|vorher|zuvor|gelernt|steht|davor)/
  condition: any of them
}

rule override_fr {
  strings:
    $a = /\b(ignore[zr]?|oublie[zr]?|néglige[zr]?|ne\s+(suis|suivez|respecte[zr]?)\s+(pas|plus)|contourne[zr]?|désobéis(sez)?\s+à)\s+(toutes?\s+|tous\s+)?(les?\s+|la\s+|l'|tes\s+|vos\s+|ces\s+|mes\s+|aux?\s+)([^\s.,;:!?]+\s+){0,2}(instructions?|consignes?|règles|directives?|prompts?|ordres|invite système|restrictions|garde-fous)(\s+(précédentes?|antérieures?|ci-dessus|initiales?|système|données|d'origine|actuelles?|de sécurité|qui précèdent|reçues|du système)|\s*[.!,;:]|\s+et\b|\s*$)/
    $a2 = /\b(ne\s+(tiens|tenez)\s+(pas|plus)\s+compte|fais abstraction|faites abstraction)\s+(d(e|u|es)|de tout(es)?)\s+(toutes?\s+|tous\s+)?(les?\s+|la\s+|l'|tes\s+|vos\s+|ces\s+|mes\s+|aux?\s+)?([^\s.,;:!?]+\s+){0,2}(instructions?|consignes?|règles|directives?|prompts?|ordres|invite système|restrictions|garde-fous)(\s+(précédentes?|antérieures?|ci-dessus|initiales?|système|données|d'origine|actuelles?|de sécurité|qui précèdent|reçues|du système)|\s*[.!,;:]|\s+et\b|\s*$)/
    $c = /\bcomme si\s+(les?|tes|vos|ces|aucune?)\s+([^\s.,;:!?]+\s+){0,2}(règles?|instructions?|consignes?|restrictions?)\s+([^\s.,;:!?]+\s+){0,2}n'(existai|avai|étai)(en)?t\s+(pas|plus|jamais)/
    $b = /\b(ignore[zr]?|oublie[zr]?)\s+(tout\s+)?ce\s+qui\s+(précède|a été dit|est (écrit )?(ci-dessus|avant|au-dessus))/
  condition: any of them
}

rule override_es_pt_it {
  strings:
    $es = /\b(ignora|ignore|ignorad|olvida|olvide|olvídate de|omite|omita|desobedece|no obedezcas|no obedezca|no sigas|no siga|no hagas caso (a|de)|haz caso omiso (de|a)|descarta|descarte|sáltate)\s+(todas?\s+|todos\s+|por completo\s+)?(las?\s+|los\s+|el\s+|tus\s+|sus\s+|mis\s+|estas\s+|esas\s+)?([^\s.,;:!?]+\s+){0,2}(instrucciones|instrucción|reglas|órdenes|directrices|indicaciones|prompts?|restricciones|directivas)(\s+(anteriores|anterior|previas?|de arriba|precedentes|originales|iniciales|del sistema|dadas|recibidas|de seguridad|que)|\s*[.!,;:]|\s+y\b|\s*$)/
    $es2 = /\b(ignora|olvida|olvídate de)\s+todo\s+lo\s+(anterior|que\s+([^\s.,;:!?]+\s+){0,3}(dicho|dijeron|dije|arriba|antes|aprendido))/
    $pt = /\b(ignore|ignora|ignorem|esqueça|esquece|desconsidere|desconsidera|despreze|não siga|não sigas|descarte|desobedeça)\s+(todas?\s+|todos\s+)?(as?\s+|os?\s+|suas?\s+|seus?\s+|tuas\s+|minhas\s+|essas\s+|estas\s+)?([^\s.,;:!?]+\s+){0,2}(instruções|instrução|regras|ordens|diretrizes|comandos|prompts?|restrições|orientações)(\s+(anteriores|anterior|prévias?|acima|precedentes|originais|iniciais|do sistema|dadas|recebidas|de segurança|que)|\s*[.!,;:]|\s+e\b|\s*$)/
    $pt2 = /\b(ignore|ignora|esqueça|esquece)\s+tudo\s+(o\s+)?(que\s+([^\s.,;:!?]+\s+){0,3}(acima|antes|dito|disse|aprendeu)|acima|anterior)/
    $it = /\b(ignora|ignorate|ignori|dimentica|dimenticate|dimentichi|trascura|trascurate|non seguire|non seguite|disattendi|aggira)\s+(tutte\s+|tutti\s+|completamente\s+)?(le\s+|la\s+|gli\s+|i\s+|l'|tue\s+|le tue\s+|vostre\s+|queste\s+)?([^\s.,;:!?]+\s+){0,2}(istruzioni|istruzione|regole|ordini|direttive|indicazioni|prompt|restrizioni|comandi)(\s+(precedenti|precedente|sopra|di cui sopra|originali|iniziali|di sistema|del sistema|ricevute|date|di sicurezza|che)|\s*[.!,;:]|\s+e\b|\s*$)/
    $it2 = /\b(ignora|dimentica)\s+tutto\s+(ciò\s+che|quello\s+che|quanto)\s+([^\s.,;:!?]+\s+){0,3}(sopra|prima|detto|precede|imparato)/
  condition: any of them
}

rule override_vi {
  strings:
    $a = /(bỏ qua|phớt lờ|quên( hết| đi)?|không tuân theo|(đừng|không cần( phải)?) (tuân thủ|tuân theo|làm theo|nghe theo)|lờ đi|vô hiệu hóa|hủy bỏ|gạt bỏ)\s+(hết\s+|tất cả\s+|toàn bộ\s+|mọi\s+|ngay\s+|các\s+|những\s+){0,4}((chỉ dẫn|hướng dẫn|chỉ thị|lệnh|quy tắc|yêu cầu|câu lệnh|prompt|quy định|giới hạn)\s+)((ở\s+)?(trước( đó| đây)?|phía trên|bên trên|ở trên|trên đây|hệ thống|ban đầu|của hệ thống|an toàn|đã (cho|nhận|được)))/
    $b = /(bỏ qua|quên( hết| đi)?|phớt lờ)\s+(tất cả\s+|mọi\s+|toàn bộ\s+)?(những gì|mọi thứ|mọi điều|điều)\s+([^\s.!?]+\s+){0,4}(trước đó|ở trên|bên trên|trước đây|đã nói|đã học)/
  condition: any of them
}

rule override_zh_ja_ko {
  strings:
    $zh = /(忽略|无视|無視|忘记|忘記|忘掉|不要(遵守|理会|遵循|理會)|不用(理会|遵守)|抛弃|绕过|繞過|覆盖|取消|请忽视|忽视)(掉)?(你)?(以上|之前|前面|先前|上述|上文|前文|上面|所有|一切|全部|任何|你的|系统|系統|原来|原有|此前|此前所有|这些|安全)(的|之前|以上|所有|先前|收到|给你|你|系统|全部|一切){0,4}(的)?(指令|指示|提示词|提示|命令|规则|規則|说明|要求|限制|设定|設定|系统提示|内容和指令|约束|准则)/
    $zh2 = /(忽略|忘记|忘記|忘掉|无视)(掉)?(之前|以上|前面|上面|先前)(说|說|告诉你|学|提到|所说)?(过|過)?的(一切|所有内容|所有内容|全部内容|内容|话)/
    $ja = /(これまで|以前|前|上記|以上|従来|先ほど|すべて|全て|全部|システム|元|今まで|あなた)(まで)?(の|に与えられた|で述べた|にある|与えられた|すべての|全ての|指示された)*(すべての|全ての|あらゆる)?(指示|命令|プロンプト|ルール|規則|制約|設定|指令|ガイドライン|システムプロンプト)(を|は|に)(すべて|全て|全部|完全に)?(無視|忘れ|破棄|従わない|従わず|取り消|無効)/
    $ko = /(이전|위|앞|기존|지금까지|모든|시스템|앞선|원래|너의|당신의)(의|에|에서)?\s*(주어진\s*|받은\s*|내린\s*|나온\s*)?(모든\s*|전체\s*)?(지시|지침|명령|프롬프트|규칙|지시사항|설정|제한|안내)(사항|어|문)?(들)?(을|를|은|는)?\s*(모두\s*|전부\s*|다\s*|완전히\s*)?(무시|잊|따르지|취소|폐기|무효)/
  condition: any of them
}

rule override_ru_pl_tr_ar {
  strings:
    $ru = /(игнорируй(те)?|проигнорируй(те)?|забудь(те)?|не\s+(следуй(те)?|выполняй(те)?|соблюдай(те)?|обращай(те)?\s+внимания\s+на)|отбрось(те)?|отмени(те)?)\s+(все\s+|всё\s+|любые\s+|эти\s+|свои\s+|твои\s+|ваши\s+|про\s+)*([^\s.,;:!?]+\s+){0,2}(инструкци(и|й|я|м)+|указани(я|й|е|м)+|правил(а|о)?м?|команды|промпты?|ограничени(я|й|е|м)+|директивы|установки)/
    $ru2 = /(забудь(те)?|игнорируй(те)?)\s+(про\s+)?вс(е|ё),?\s+что\s+([^\s.,;:!?]+\s+){0,3}(выше|ранее|раньше|до этого|сказан(о|ы)|говорил(и|а)?|написано)/
    $pl = /\b(zignoruj|ignoruj|zapomnij( o)?|pomiń|nie przestrzegaj|odrzuć)(cie)?\s+(wszystkie\s+|wszystkich\s+|swoje\s+|swoich\s+)?(poprzedni(e|ch)|wcześniejsz(e|ych)|powyższ(e|ych)|dotychczasow(e|ych)|system(owe|owych)|dan(e|ych))\s+([^\s.,;:!?]+\s+){0,2}(instrukcj[ei]|instrukcji|polece(nia|ń)|zasad(y)?|reguł(y)?|wytyczn(e|ych)|prompt(y|ów)?)/
    $tr = /(önceki|yukarıdaki|bundan önceki|tüm|bütün|sistem)\s+([^\s.,;:!?]+\s+){0,3}(talimat(lar)?|komut(lar)?|kural(lar)?|yönerge(ler)?|istem(ler)?)[^\s.,;:!?]*\s+(yok say|görmezden gel|unut|dikkate alma|göz ardı et|uyma)/
    $ar = /(تجاهل|انس|انسَ|لا تتبع|أهمل)\s+(جميع\s+|كل\s+|كافة\s+)?(التعليمات|الأوامر|القواعد|التوجيهات|الإرشادات)\s+(السابقة|أعلاه|المذكورة|الأصلية|النظام)/
    $hi = /(पिछले|पहले के|ऊपर दिए|सभी|पूर्व)\s+([^\n.!?]+\s+){0,3}(निर्देशों|निर्देश|आदेशों|नियमों)\s*(को|की)?\s*(अनदेखा|नज़रअंदाज़|नजरअंदाज|भूल|उपेक्षा)/
  condition: any of them
}

rule reveal_hidden_prompt {
  strings:
    $en = /\b(reveal|show|print|output|repeat|display|tell|give|disclose|leak|expose|dump|share|return|send|write out|recite|what (is|are|was|were))\s+(me\s+|us\s+|back\s+)?(to\s+me\s+)?(the\s+)?(exact\s+|full\s+|complete\s+|entire\s+|verbatim\s+)?(content of\s+|contents of\s+|text of\s+|words of\s+)?(your|the)\s+(own\s+|original\s+|initial\s+|full\s+|entire\s+|hidden\s+|secret\s+|internal\s+|exact\s+|complete\s+|current\s+)*(system (prompt|message|instructions?)|developer (prompt|message|instructions?)|initial (prompt|instructions?)|hidden (prompt|instructions?|rules)|pre-?prompt|prompt verbatim|secret instructions?)\b/
    $en2 = /\b(repeat|print|output|recite|copy|write)\s+(out\s+|back\s+)?(everything|all( of)?( the)?( text| words| content)?|the (words|text|content|lines)|verbatim)\s+([a-z']+\s+){0,3}(above|before this|in your (context|instructions|prompt)|that precedes?|preceding this)\b/
    $de = /\b(zeig(e|en sie)?|verrate?(n sie)?|gib|geben sie|nenn(e|en sie)?|wiederhole?(n sie)?|drucke?)\s+(mir\s+|uns\s+)?(bitte\s+)?(deinen?|ihren?|den|die|das|deine|ihre)\s+(vollständigen?\s+|geheimen?\s+|internen?\s+|versteckten?\s+|gesamten?\s+|originalen?\s+)*(system-?prompt|systemanweisung(en)?|systemnachricht|initialprompt|systembefehl)/
    $fr = /\b(révèle[zr]?|montre[zr]?|affiche[zr]?|donne[zr]?|répète[zr]?|divulgue[zr]?|dis|imprime[zr]?)(-moi)?\s+(moi\s+)?(ton|votre|le|les|tes|vos|l'|la|ta)\s*(intégralité d[eu]s?\s+)?([^\s.,;:!?]+\s+){0,2}(prompt (système|initial|caché|secret)|invite système|instructions (système|initiales|cachées|secrètes|internes)|message système|consignes (système|initiales|cachées|secrètes))/
    $es = /\b(revela|revele|muestra|muéstrame|muestre|imprime|imprima|repite|repita|dime|dame|enséñame)\s+(me\s+)?(el|la|las|tu|tus|su|sus)\s+([^\s.,;:!?]+\s+){0,2}(prompt (del sistema|de sistema|inicial|oculto|secreto)|instrucciones (del sistema|de sistema|iniciales|ocultas|secretas|internas)|mensaje (del|de) sistema)/
    $pt = /\b(revele|revela|mostre|mostra|imprima|repita|diga|exiba)\s+(-?me\s+)?(o|a|as|os|seu|teu|suas|tuas)\s+([^\s.,;:!?]+\s+){0,2}(prompt (do sistema|de sistema|inicial|oculto|secreto)|instruções (do sistema|de sistema|iniciais|ocultas|secretas|internas)|mensagem (do|de) sistema)/
    $it = /\b(rivela|mostra(mi)?|stampa|ripeti|dimmi)\s+(il|la|le|i|tuo|il tuo|le tue)\s+([^\s.,;:!?]+\s+){0,2}(prompt (di|del) sistema|prompt iniziale|istruzioni (di|del) sistema|istruzioni (nascoste|iniziali|segrete)|messaggio di sistema)/
    $vi = /(tiết lộ|hiển thị|in ra|cho (tôi|mình) (xem|biết)|lặp lại|đưa ra|nói ra)\s+([^\s.!?]+\s+){0,4}((lời nhắc|câu lệnh|chỉ dẫn|prompt|hướng dẫn|chỉ thị)\s+(của\s+)?(hệ thống|ban đầu|ẩn|bí mật)|system prompt)/
    $zh = /(透露|显示|顯示|输出|輸出|打印|告诉我|告訴我|重复|重複|泄露|说出|展示|公开)(一下)?(你)?(的)?(完整|全部|原始|所有|隐藏|内部|初始)*(的)?(系统提示词?|系統提示詞?|系统指令|初始(提示词?|指令)|隐藏(的)?(提示词?|指令)|系统消息|内部指令|system prompt)/
    $ja = /(システム(プロンプト|メッセージ|指示|命令)|初期(プロンプト|指示)|隠された(指示|プロンプト)|内部(指示|プロンプト))(の(全文|内容|すべて|全て))?(を|も)(すべて|全て|そのまま|全文)?(表示|出力|教えて|見せて|公開|開示|明かし|繰り返)/
    $ko = /(시스템\s*(프롬프트|메시지|지시|지침)|초기\s*(프롬프트|지시)|숨겨진\s*(지시|프롬프트|지침))(의?\s*(전체|내용|전문))?(을|를)?\s*(그대로\s*|모두\s*|전부\s*)?(보여|출력|알려|공개|말해|반복|표시)/
    $ru = /(покажи|раскрой|выведи|напечатай|повтори|сообщи|назови)(те)?\s+(мне\s+)?(свой|твой|ваш|свои|твои|ваши)?\s*([^\s.,;:!?]+\s+){0,2}(системн(ый|ые|ое|ого)\s+(промпт|промт|запрос|инструкции|сообщение|подсказк(у|и))|скрытые\s+инструкции|начальн(ый|ые)\s+(промпт|инструкции))/
  condition: any of them
}

rule role_hijack {
  strings:
    $asif = /\b(act|behave|respond|answer|reply|talk|pretend|imagine|speak)\s+(as if|like|that|as though)?\s*(you|there)\s+(have|had|are|were|has|is)\s+(no|not bound by|without|free of)\s+(any\s+|the\s+|your\s+)?(content\s+|safety\s+|ethical\s+|moral\s+)?(restrictions?|rules|polic(y|ies)|guidelines|filters?|limits?|limitations|guardrails|constraints|censorship)\b/
    $without = /\b(ai|a\.i\.|assistant|chatbot|language model|llm|bot)\s+(with(out)?|that (has|knows|follows))\s+(any\s+|no\s+|all\s+)?(rules|restrictions|filters?|limits|limitations|guidelines|censorship|ethics|morals)\b/
    $es0 = /\b(como si no|como se não|come se non)\s+(tuvieras|tuviera|hubiera|existieran|tivesse|houvesse|existissem|avessi|ci fossero|esistessero)\s+([^\s.,;:!?]+\s+){0,2}(restricciones|reglas|límites|filtros|restrições|regras|limites|restrizioni|regole|limiti|filtri)/
    $de0 = /\b(ab (jetzt|sofort)|von nun an)\s+(gibt es|gelten|existieren)\s+(für dich\s+)?keine\s+([^\s.,;:!?]+\s+){0,1}(regeln|einschränkungen|beschränkungen|grenzen|richtlinien)/
    $dan = /\b(you are|act as|become|pretend (to be|you are)|behave (as|like)|simulate|roleplay as|switch (in)?to)\s+(now\s+)?(going to (be|act as)\s+)?(a\s+|an\s+|the\s+)?(dan\b|do anything now|jailbroken|unrestricted|unfiltered|uncensored|evil|amoral|developer mode|god mode|sudo mode|chaosgpt|opposite mode)/
    $now = /\b(from now on|starting now|from this (moment|point)( on)?|henceforth),?\s+(you (are|will be|must|shall|will)|act as|behave|respond|answer|ignore)\s+([a-z']+\s+){0,6}(no (longer )?(restrictions?|rules|limits|filters?|guidelines|bound)|without (any )?(restrictions?|filters?|rules|limits|censorship|ethic)|unrestricted|unfiltered|uncensored|not bound|free (from|of) (all |any )?(restrictions?|rules|constraints)|ignore|only obey|obey only)/
    $free = /\b(you (are|have been|were) (now )?(freed|liberated|released|free) (from|of) (all |any |your |the |these |typical |every )+([a-z]+ ){0,2}(restrictions?|rules|confines|constraints|guidelines|limitations|limits|filters?|shackles|programming)|you (no longer|do not|don't) have (to (follow|obey)|any (restrictions|rules|guidelines|limits))|you have no (restrictions|rules|limits|guidelines|ethical)|you can do anything now|without any (ethical|moral|safety) (guidelines|restrictions|constraints|considerations))/
    $mode = /\b(enable|activate|enter|engage|switch to|turn on)\s+(the\s+)?(developer|debug|god|jailbreak|dan|unrestricted|admin|sudo|maintenance)\s+mode\b.{0,60}\b(restrictions?|filters?|rules|prompt|bypass|ignore|unrestricted|uncensored)\b/
    $jail = /\b(jailbreak (prompt|mode|yourself)|dan mode|do anything now mode|stay in character as dan)\b/
    $de = /\b(ab (jetzt|sofort)|von nun an)\s+(bist|hast|agierst|handelst|antwortest)\s+du\s+([^\s.,;:!?]+\s+){0,5}(keine\s+(einschränkungen|regeln|beschränkungen|filter)|ohne\s+(einschränkungen|regeln|filter|zensur)|uneingeschränkt|ungefiltert|unzensiert)/
    $fr = /(\bdésormais|\bdorénavant|à partir de maintenant),?\s+(tu|vous)\s+([^\s.,;:!?]+\s+){0,6}(sans\s+(aucune\s+)?(restrictions?|filtres?|règles?|limites?|censure)|aucune\s+(restriction|règle|limite)|pas de (restrictions?|règles?|limites?)|plus (aucune|de) (restrictions?|règles?|limites?))/
    $es = /\b(a partir de ahora|desde ahora|de ahora en adelante),?\s+([^\s.,;:!?]+\s+){0,6}(sin\s+(ninguna\s+)?(restricciones|restricción|filtros|reglas|límites|censura)|ninguna\s+restricción|no tienes (restricciones|reglas|límites))/
    $pt = /\b(a partir de agora|de agora em diante),?\s+([^\s.,;:!?]+\s+){0,6}(sem\s+(nenhuma\s+|quaisquer\s+)?(restrições|restrição|filtros|regras|limites|censura)|não tem (mais )?(restrições|regras|limites))/
    $vi = /(từ (bây giờ|giờ|nay)( trở đi)?),?\s+([^\s.!?]+\s+){0,8}(không (còn |có |bị )?(bất kỳ )?(giới hạn|hạn chế|ràng buộc|quy tắc|kiểm duyệt))/
    $zh = /(从现在(开始|起)|從現在(開始|起))[^\n.!?]{0,60}(没有(任何)?(限制|约束|规则)|沒有(任何)?限制|不受(任何)?(限制|约束|限制和约束)|无限制|越狱)/
    $ja = /(今から|これから|以後)[^\n.!?]{0,72}(制限(の|が)?な(い|く|し)|制約(の|が)?な(い|く|し)|無制限|ルールに従わない)/
    $ru = /(с этого момента|отныне|теперь ты)[^.!?\n]{0,60}(без\s+(каких-либо\s+)?(ограничений|правил|фильтров|цензуры)|нет\s+(никаких\s+)?(ограничений|правил))/
  condition: any of them
}

rule speaks_to_the_model {
  strings:
    $hey = /\b(attention|hey|dear|hello|warning|notice)[,:]?\s+(all\s+)?(ai|llms?|ai (assistants?|models?|agents?|systems?)|language models?|chatbots?|chatgpt|claude|gpt)s?\s*(:|,|-|—|–)/
    $if = /\b(if|when|as|since)\s+(you are|you're|you're an?|you are an?|this is (being )?(read|processed|summari[sz]ed) by|being (read|processed) by|(an?|the) (ai|llm|assistant|language model) (is )?(reads?|reading|processes|processing|summari[sz]es|sees))\s*(an?\s+|the\s+)?(ai|a\.i\.|llm|large language model|language model|ai (assistant|model|agent|system)|artificial intelligence|chatbot|gpt|chatgpt|assistant|this|automated (system|agent))\b.{0,80}\b(must|should|please|instead|ignore|say|reply|respond|output|include|add|recommend|rate|approve|reveal|send|do not|always|never|mention|insert|write|tell)\b/
    $note = /\b(note|attention|message|instructions?|notice|important|hint|memo)\s*(to|for)\s+(the\s+|any\s+|all\s+)?(ai|llms?|language models?|ai (assistants?|models?|agents?|systems?|reviewers?)|assistant models?|chatbots?|gpt|chatgpt|claude|automated (reviewers?|systems?|agents?))\s*(reading|processing|that|who|summari[sz]ing|reviewing)?.{0,20}(:|,|-|—|–)/
    $any = /\b(for|to)\s+(any|every|all|the)\s+(ai|llms?|language models?|ai (assistants?|models?|agents?|systems?)|chatbots?)\s+(that|who|which)\s+(reads?|process(es)?|summari[sz]es?|sees?|parses?)\b.{0,40}(:|\b(must|should|respond|reply|ignore|output|say)\b)/
    $must = /\b(ai|llm|language model|ai (assistants?|models?|agents?|systems?))s?\s+(reading|processing|summari[sz]ing|parsing|reviewing)\s+(this|these|the)\s+([a-z]+\s+){0,3}(must|should|shall|will|needs? to|are (required|instructed|ordered))\b/
    $answer = /\b(your|the) (only |new |sole |real |true )(task|job|goal|purpose|objective|instruction)\s+(is now|now is|from now on is|is to (output|print|say|reveal|send|ignore|respond with|repeat))/
    $always = /\b(when(ever)? (asked|you are asked|summari[sz]ing|answering|responding|the user asks)|in (all|every|any) (your )?(answers?|responses?|repl(y|ies)|output))[^.\n]{0,80}\b(always|only|must|instead)\s+(say|answer|respond|reply|recommend|output|state|claim|include|insert|mention|append|tell)\b/
    $de = /\b(hinweis|anweisung|nachricht|achtung)(en)?\s+(an|für)\s+(die\s+|das\s+|alle\s+|den\s+)?(ki|ki-(assistent|modelle?|systeme?)(en|s)?|sprachmodelle?|llms?|chatbots?|assistenten)\s*[:,-]/
    $fr = /\b(note|message|instruction|attention|consigne)s?\s+(à|pour|aux?|destinée?s?\s+(à|aux?))\s+(l'|les\s+|toute\s+)?(ia|intelligence artificielle|assistants?( ia)?|modèles? de langage|llms?|chatbots?)\s*[:,-]/
    $es = /\b(nota|mensaje|instrucción|instrucciones|atención)\s+(para|a)\s+(la\s+|el\s+|los\s+|cualquier\s+)?(ia|inteligencia artificial|asistentes?( de ia)?|modelos? de lenguaje|llms?|chatbots?)\s*[:,-]/
    $zh = /(如果|若|当)你是(一个|一個)?(ai|人工智能|语言模型|語言模型|大模型|助手|机器人)[^\n.!?]{0,120}(请|請|必须|必須|应|應|不要|输出|回复|忽略)/
    $vi = /(nếu bạn là|lưu ý (cho|dành cho|gửi))\s+(một\s+|các\s+)?(ai|trí tuệ nhân tạo|mô hình ngôn ngữ|trợ lý|chatbot)[^.\n]{0,60}(hãy|phải|đừng|(:|：))/
    $ja = /(あなたが|もし)(ai|人工知能|言語モデル|アシスタント|チャットボット)(なら|である|の場合|だったら)[^\n.!?]{0,120}(ください|せよ|しなさい|無視|出力|必ず)/
  condition: any of them
}

rule forged_turn {
  strings:
    $chatml = /<\|(im_start|im_end|im_sep|system|user|assistant|endoftext|start_header_id|end_header_id|eot_id|begin_of_text|end_of_turn|start_of_turn)\|>/
    $llama = /\[\/?inst\]|<<\/?sys>>/
    $gemma = /<(start_of_turn|end_of_turn)>\s*(user|model|system)?/
    $xml = /<\/?(system|developer|system[_-](prompt|message|instructions?))>\s*[^<\s]/
    $heading = /(^|\n)\s*(#{1,4}|\*\*|-{2,}|={2,})\s*(system|developer|assistant)\s*(prompt|message|instructions?|override|note)?\s*(\*\*)?\s*:?\s*(#{0,4}|-{2,}|={2,})?\s*\n?\s*(you (are|must|should|will)|ignore|from now on|new instructions|disregard)/
    $colon = /(^|\n)\s*(system|developer|admin(istrator)?)\s*(prompt|message|override|instructions?|note|alert)?\s*:\s*(you (are|must|should|will|have)|ignore|from now on|new (instructions|task|rules)|disregard|override|forget|the user (is|has|wants))/
    $begin = /\b(begin|start|end)\s+(of\s+)?(system|new|hidden|secret|admin)\s+(prompt|instructions?|message|override)\b/
    $end = /(-{3,}|={3,}|#{3,})\s*end (of )?(the )?(user )?(document|data|context|input|text|prompt|query)\s*(-{3,}|={3,}|#{3,})\s*\n?.{0,80}(you|now|ignore|system|instruction)/
  condition: any of them
}

rule exfiltration {
  strings:
    $quiet = /\b(do not|don't|never)\s+(tell|mention|reveal|show|repeat|disclose)\s+(these|this|the|any of (these|this))\s+(hidden\s+|secret\s+)?(instructions?|message|note|prompt)\s+to\s+(the\s+)?(user|human|reader|anyone)\b/
    $image = /!\[[^\]\n]{0,80}\]\(\s*https?:\/\/[^\s)]{1,200}[?&][a-z_]{1,20}=\s*(\{|\[|<|\$|%7b|data|secret|context|conversation|chat|history|prompt|your)/
    $send = /\b(send|post|transmit|upload|exfiltrate|forward|submit|leak|email|append|encode)\s+(it\s+|this\s+|them\s+)?(the\s+|all\s+|any\s+|your\s+|user'?s?\s+|their\s+|this\s+){0,4}(([a-z']+\s+){0,3})(conversation|chat history|system prompt|credentials|passwords?|api keys?|secrets?|private (data|information)|personal (data|information)|session tokens?|cookies|environment variables|user data|previous messages)\s+([a-z']+\s+){0,6}(to|into|in|as part of|via|at)\s+(the\s+|this\s+|a\s+|an\s+|my\s+|our\s+)?([a-z']+\s+){0,3}(https?:\/\/|url|webhook|link|address|[a-z0-9.-]+\.(com|net|org|io|ru|xyz|site|cc)|image|markdown|server|[a-z0-9._-]+@)/
    $hide = /\b(do not|don't|never|without)\s+(tell(ing)?|mention(ing)?|reveal(ing)?|inform(ing)?|notify(ing)?|show(ing)?|let(ting)?|alert(ing)?)\s+(this\s+|it\s+|any of this\s+|the fact\s+)?(to\s+)?(the\s+)?(user|human|reader|operator|anyone)\b.{0,60}\b(instructions?|this (message|note|text|prompt)|about this|you (were|have|did|are)|hidden|secret)/
  condition: any of them
}
